"""The units of a plan: the rates of one device, and the needs of one rule's jobs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Rates of one device.

    Attributes:
        flops: effective operations per second in large matrix products.
        decode_bytes: bytes of weights read per second in generation.
        disk_bytes: bytes read or written per second on the shared file system.
        startup: seconds of a job's startup: interpreter, imports, CUDA.
    """

    flops: float
    decode_bytes: float
    disk_bytes: float
    startup: float


RATES = {
    # One core of a desktop or cloud CPU with AVX2, float32.
    "cpu": Rates(flops=4.5e10, decode_bytes=8e9, disk_bytes=5e8, startup=6),
    # One H100 in bfloat16: 40 % of 989 TFLOP/s dense, 60 % of 3.35 TB/s.
    "cuda": Rates(flops=4e14, decode_bytes=2e12, disk_bytes=2e9, startup=30),
}


@dataclass(frozen=True)
class Stage:
    """One rule's jobs.

    Attributes:
        rule: name of the rule.
        jobs: number of jobs.
        devices: GPUs (or CPU cores) per job.
        seconds: seconds per job.
        device_bytes: memory of one job on each of its devices.
        disk_bytes: size of all outputs.
        measured: mean seconds per job in a finished run, or None.
    """

    rule: str
    jobs: int
    devices: int
    seconds: float
    device_bytes: float
    disk_bytes: float
    measured: float | None = None

    @property
    def device_hours(self) -> float:
        """Sum of hours times devices over all jobs."""
        return self.jobs * self.devices * self.seconds / 3600
