"""What a run will need before it runs: `tangram plan --config config/llama-3.1-70b-h100.yaml`.

Counts the work of every stage from the config: floating-point operations and bytes, divided by what a device does in a
second. The rates are round figures (`RATES`, or options of the command); beside a finished run, `--measured` shows how
far off they are. Jobs of a stage run side by side where a cluster lets them: device-hours are what they add up to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from tangram.blocks.base import FITTED_TOKENS
from tangram.cli import run
from tangram.config import SPLITS, Config, Split, load
from tangram.errors import TangramError

FORWARD, TRAINING = 2, 6  # operations per parameter and token: forward; forward, and backward to inputs and weights
MASTER_BYTES = 4 * 4  # of a trained parameter: weight, gradient and two moments, float32 whatever the run's dtype


def trained_bytes(parameters: float, element: int) -> float:
    """Return the memory of parameters in training where nothing is sharded, ``element`` bytes being one of the run's.

    A pass computes with weights that are rounded to the run's dtype, and keeps them until its gradients are there.
    """
    return parameters * (MASTER_BYTES + (element if element < 4 else 0))


@dataclass(frozen=True)
class Rates:
    """What one device does in a second.

    Attributes:
        flops: useful operations of large matrix products, a fraction of the peak.
        decode_bytes: bytes of weights read while generating.
        disk_bytes: bytes read or written on the shared file system.
        startup: seconds until a job computes: interpreter, imports, CUDA.
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


# Whose memory is a device's; the others' is the node's.
ON_DEVICE = {
    "build_corpus", "capture_activations", "distill_blocks", "score_blocks", "measure_costs", "calibrate_costs",
    "finetune_child", "evaluate_model",
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Parameters of a parent, by part; embedding and head are one matrix if they are ``tied``."""

    layers: int
    hidden: int
    attention: int
    ffn: int
    head: int
    embedding: int
    kv_per_token: int
    tied: bool

    @property
    def inner(self) -> int:
        """Channels of an FFN."""
        return self.ffn // (3 * self.hidden)

    @property
    def kept(self) -> int:
        """Numbers of the run's dtype that a layer keeps of each token for its backward pass, counted on a Llama's."""
        return 11 * self.hidden + 4 * self.inner

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.attention + self.ffn

    @property
    def body(self) -> int:
        """Parameters of all layers."""
        return self.layers * self.layer

    @property
    def total(self) -> int:
        """Parameters that are stored."""
        return self.body + self.ends

    @property
    def ends(self) -> int:
        """Parameters outside the layers."""
        return self.embedding + (0 if self.tied else self.head)


@dataclass(frozen=True)
class Stage:
    """One rule's jobs.

    Attributes:
        rule: its name.
        jobs: how many.
        devices: GPUs (or CPU cores) that one job takes.
        seconds: of one job.
        device_bytes: memory that one job needs on each of its devices.
        disk_bytes: what all its outputs take.
        measured: median seconds of one job of a finished run, where there is one.
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
        """Hours that all jobs take together, times their devices."""
        return self.jobs * self.devices * self.seconds / 3600


def sizes_of(config: Config) -> Sizes:
    """Return the parent's sizes, from its fetched checkpoint or from `parent.sizes`.

    Raises:
        TangramError: neither is there.
    """
    path = Path("results", config.run, "parent", "config.json")
    if config.parent.sizes is not None:
        known = config.parent.sizes.model_dump()
    elif path.is_file():
        found = json.loads(path.read_text())
        known = {name: found.get(name) for name in ("hidden_size", "intermediate_size", "vocab_size", "head_dim")}
        known["tie_word_embeddings"] = found.get("tie_word_embeddings", False)
    else:
        raise TangramError(f"the parent's sizes are not known: fetch it ({path}), or give config.parent.sizes")
    hidden, heads, kv_heads = known["hidden_size"], config.parent.num_attention_heads, config.parent.num_kv_heads
    head_dim = known["head_dim"] or hidden // heads
    return Sizes(
        layers=config.parent.num_layers,
        hidden=hidden,
        attention=2 * hidden * head_dim * (heads + kv_heads),
        ffn=3 * hidden * known["intermediate_size"],
        head=hidden * known["vocab_size"],
        embedding=hidden * known["vocab_size"],
        kv_per_token=2 * head_dim * kv_heads,
        tied=known["tie_word_embeddings"],
    )


def _trained(variant: str) -> bool:
    return variant not in ("linear", "no-op")


def _share(variant: str, config: Config) -> float:
    """Return a piece's parameters relative to the parent's subblock, roughly."""
    family, _, rest = variant.partition("-")
    if family == "width":
        return float(rest)
    if family == "gqa":
        heads = config.parent.num_attention_heads
        return (heads + int(rest)) / (heads + config.parent.num_kv_heads)
    return {"no": 0.0, "linear": 0.25}.get(family, 0.5)


def stages(config: Config, rates: Rates) -> Iterator[Stage]:
    """Yield every rule that does work, in the order of the data flow.

    Args:
        config: the run.
        rates: of one device.
    """
    sizes, element = sizes_of(config), 2 if config.dtype == "bfloat16" else 4
    pieces = [(kind, name) for kind in ("attention", "ffn") for name in getattr(config.library, kind)]
    shards = -(-sizes.layers // config.library.layers_per_shard)
    per_shard = sizes.layers / shards
    stream = config.activations.mode == "stream"
    whole = element * sizes.total
    held = element * (2 * sizes.layer + 2 * sizes.embedding) if config.parent.by_layer else whole
    loading = rates.startup + whole / rates.disk_bytes
    corpus = {name: getattr(config.corpus, name) for name in SPLITS}
    tokens = {name: split.tokens for name, split in corpus.items()}
    hidden_bytes = {name: 4 * (sizes.layers + 1) * count * sizes.hidden for name, count in tokens.items()}

    def forward(count: float, layers: float, head: bool = False) -> float:
        return FORWARD * count * (layers * sizes.layer + (sizes.head if head else 0)) / rates.flops

    def writing(split: Split) -> float:
        own = sum(s.weight for s in split.sources if s.type == "parent-samples") / sum(s.weight for s in split.sources)
        batch = next((s.batch_size for s in split.sources if s.type == "parent-samples"), 1)
        # One step reads all weights, or computes them for the batch, whichever takes longer.
        step = max(whole / rates.decode_bytes, FORWARD * batch * (sizes.body + sizes.head) / rates.flops)
        return own * split.tokens / batch * step

    # The fidelity gate computes on a CPU, in float32: its budget of operations, or 64 tokens in each of its six ways.
    gate = max(1e12, FORWARD * 6 * 64 * sizes.total) / RATES["cpu"].flops
    seconds = rates.startup + 5 * whole / rates.disk_bytes + gate
    yield Stage("fetch_parent", 1, 1, seconds, max(2 * whole, whole + 4 * sizes.total), whole)
    for split in corpus.values():
        written = writing(split)
        seconds = loading + written if written else rates.startup
        yield Stage("build_corpus", 1, 1, seconds, whole if written else 1e9, 4 * split.tokens)
    if not stream:
        for name, count in tokens.items():
            seconds = loading + forward(count, sizes.layers) + hidden_bytes[name] / rates.disk_bytes
            yield Stage("capture_activations", 1, 1, seconds, held, hidden_bytes[name])

    bld, trained = config.library.bld, (1 - config.library.bld.holdout_fraction) * tokens["distil"]
    stream_bytes = tokens["distil"] * sizes.hidden  # of one byte a number
    given = 3 * element * stream_bytes  # inputs, middle and outputs
    # What pieces are fitted to, normed inputs and float32 differences, and some tokens' intermediate values: in
    # float64, or every channel's in float32.
    fitting = (element + 4) * stream_bytes
    fitting += FITTED_TOKENS * max(4 * 8 * sizes.hidden, (4 * element + 2 * 4) * sizes.inner)
    pass_bytes = bld.batch_size * config.corpus.sequence_length * sizes.kept * element
    for kind, variant in pieces:
        own = getattr(sizes, kind) * _share(variant, config)
        behind = sizes.ffn if kind == "attention" else 0  # the parent's frozen FFN, forward and back to its input
        local = per_shard * trained * bld.epochs * (TRAINING * own + 2 * FORWARD * behind) if _trained(variant) else 0
        local += per_shard * tokens["distil"] * FORWARD * (2 * sizes.layer + sizes.hidden**2 * (variant == "linear"))
        before = forward(tokens["distil"], sizes.layers / 2) if stream else 0  # the mean shard is half-way up
        # Trained in a copy of the layer; the piece's initial weights are kept.
        training = pass_bytes + element * sizes.layer + 4 * own + trained_bytes(own, element)
        memory = held + given + max(fitting, training)
        disk = element * own * sizes.layers
        yield Stage("distill_blocks", shards, 1, loading + before + local / rates.flops, memory, disk)

    count, positions = tokens["score"], tokens["score"] / config.scores.position_stride
    for _ in pieces:
        above = forward(count, per_shard * sizes.layers / 2) + per_shard * forward(positions, 0, head=True)
        before = forward(count, sizes.layers) if stream else 0
        memory = held + 4 * 2 * count * sizes.hidden + 4 * positions * sizes.head / sizes.hidden
        yield Stage("score_blocks", shards, 1, loading + before + above, memory, 0)

    workloads = [(s, batch) for s in config.scenarios.values() for batch in s.batch_sizes]
    cache = max(batch * (s.prefill + s.generate) for s, batch in workloads) * sizes.kv_per_token * element
    stack = config.costs.stack_megabytes * 1e6

    def timing(parameters: float, repeats: float, steps: bool = False) -> float:
        """Seconds to time something of so many parameters: prefills, and single decode steps or whole generations."""
        prefill = sum(FORWARD * batch * s.prefill * parameters / rates.flops for s, batch in workloads)
        decode = sum(element * parameters / rates.decode_bytes * (s.generate if steps else 1) for s, _ in workloads)
        return (repeats + 1) * (prefill + decode)

    for kind in ("attention", "ffn"):
        copies = max(1.0, stack / (element * getattr(sizes, kind)))
        seconds = rates.startup + 2 * copies * timing(getattr(sizes, kind), 2 * config.costs.repeats)
        jobs = 1 + len(getattr(config.library, kind))
        yield Stage("measure_costs", jobs, 1, seconds, 2 * stack + cache / sizes.layers, 0)
    yield Stage("calibrate_costs", 1, 1, rates.startup + 4 * timing(sizes.total, 3), 2 * whole + cache, 0)
    yield Stage("solve_mip", len(config.targets), 1, 5, 1e9, 0)

    children = sum(target.solutions + target.compare_layers_dropped for target in config.targets.values())
    yield Stage("assemble_child", children, 1, loading + whole / rates.disk_bytes, whole, children * whole)

    layout, count = config.finetune.parallel, tokens["finetune"] * config.finetune.epochs
    devices = layout.nodes * layout.processes_per_node
    parts = devices if layout.strategy == "fsdp" else 1
    step = TRAINING * (sizes.body + sizes.head) + FORWARD * (sizes.head + (sizes.body if stream else 0))
    step += FORWARD * sizes.body if parts > 1 else 0  # layers are recomputed
    batch = config.finetune.micro_batch_size * config.corpus.sequence_length
    kept, logits = batch * sizes.kept * element, batch * 4 * 4 * sizes.head / sizes.hidden
    ends = 2 * element * sizes.head  # the teacher's embedding and head, whole in every process
    body = element * sizes.body if stream else 0
    if parts == 1:
        memory = trained_bytes(sizes.total, element) + body + ends + sizes.layers * kept + logits
    else:
        # Gathered: weights and gradients of the ends, and either what is exchanged of them, in float32, or two layers'
        # weights, gradients and exchanges. Layers are recomputed, so that only their inputs are kept.
        gathered = 2 * element * sizes.ends + max(4 * sizes.ends, (4 * element + 2 * 4) * sizes.layer)
        inputs = sizes.layers * batch * sizes.hidden * element
        memory = (MASTER_BYTES * sizes.total + body) / parts + ends + gathered + inputs + kept + logits
    seconds = loading + count * step / rates.flops / devices + 2 * whole / rates.disk_bytes
    yield Stage("finetune_child", children, devices, seconds, memory, children * whole)

    heldout = forward(tokens["heldout"], sizes.layers, head=True)
    repeats = config.evaluation.throughput_repeats
    seconds = 2 * loading + 2 * heldout + 2 * timing(sizes.total, repeats, steps=True)
    yield Stage("evaluate_model", children, 1, seconds, 2 * whole + cache, 0)


def merged(found: Iterator[Stage]) -> list[Stage]:
    """Return one stage per rule: mean seconds, largest memory, all disk."""
    rules: dict[str, Stage] = {}
    for stage in found:
        known = rules.get(stage.rule)
        if known is None:
            rules[stage.rule] = stage
            continue
        jobs = known.jobs + stage.jobs
        rules[stage.rule] = replace(
            known,
            jobs=jobs,
            seconds=(known.jobs * known.seconds + stage.jobs * stage.seconds) / jobs,
            device_bytes=max(known.device_bytes, stage.device_bytes),
            disk_bytes=known.disk_bytes + stage.disk_bytes,
        )
    return list(rules.values())


def mean_seconds(results: Path) -> dict[str, float]:
    """Return the mean seconds of a job, by rule, of a run's finished jobs, from its benchmarks."""
    means = {}
    for folder in sorted((results / "benchmarks").glob("*")):
        seconds = [float(path.read_text().splitlines()[1].split("\t")[0]) for path in sorted(folder.rglob("*.tsv"))]
        if seconds:
            means[folder.name] = sum(seconds) / len(seconds)
    return means


def with_measured(found: list[Stage], results: Path) -> list[Stage]:
    """Return the stages with the mean seconds that a finished run's jobs took."""
    measured = mean_seconds(results)
    return [replace(stage, measured=measured.get(stage.rule)) for stage in found]


def expected_seconds(config: str | Path) -> dict[str, float]:
    """Return the seconds of a job, by rule: as the same run took before, else as planned; rules may be missing."""
    expected: dict[str, float] = {}
    with suppress(TangramError):  # neither can be told without a config, nor the plan before the parent is there
        settings = load(config)
        expected = mean_seconds(Path("results", settings.run))
        planned = merged(stages(settings, RATES[settings.device]))
        expected = {stage.rule: stage.seconds for stage in planned} | expected
    return expected


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.3g} {unit}" if value else "-"
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Write a time in the unit that it is read in."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def table(found: list[Stage], device: str) -> str:
    """Return the plan as a table of plain text."""
    unit = "GPU" if device == "cuda" else "core"
    head = ["rule", "jobs", f"{unit}s each", "time each", f"{unit}-hours", "memory each", "disk in all"]
    rows = [
        [
            stage.rule,
            str(stage.jobs),
            str(stage.devices),
            duration(stage.seconds),
            f"{stage.device_hours:.2f}",
            _bytes(stage.device_bytes),
            _bytes(stage.disk_bytes),
        ]
        for stage in found
    ]
    rows.append(
        [
            "all",
            str(sum(stage.jobs for stage in found)),
            "",
            "",
            f"{sum(stage.device_hours for stage in found):.2f}",
            _bytes(max(stage.device_bytes for stage in found)),
            _bytes(sum(stage.disk_bytes for stage in found)),
        ]
    )
    if any(stage.measured is not None for stage in found):
        head += ["measured each", "planned / measured"]
        for row, stage in zip(rows, found, strict=False):
            known = stage.measured
            row += ["-", "-"] if known is None else [duration(known), f"{stage.seconds / known:.2f}"]
        rows[-1] += ["", ""]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    aligned = [
        [row[0].ljust(widths[0])] + [row[i].rjust(widths[i]) for i in range(1, len(head))] for row in [head, *rows]
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def plan(
    config: Annotated[Path, typer.Option(help="config file")] = Path("config/config.yaml"),
    flops: Annotated[float | None, typer.Option(help="useful operations per second of one device")] = None,
    disk: Annotated[float | None, typer.Option(help="bytes per second of the shared file system")] = None,
    memory: Annotated[float, typer.Option(help="bytes of one GPU")] = 80e9,
    measured: Annotated[Path | None, typer.Option(help="a finished run's folder to compare with")] = None,
) -> None:
    """Print jobs, device-hours, memory and disk of every stage of a run, computed from its config."""
    settings = load(config)
    rates = RATES[settings.device]
    rates = replace(rates, flops=flops or rates.flops, disk_bytes=disk or rates.disk_bytes)
    found = merged(stages(settings, rates))
    if measured is not None:
        found = with_measured(found, measured)
    print(table(found, settings.device))
    for stage in found:
        if settings.device == "cuda" and stage.rule in ON_DEVICE and stage.device_bytes > memory:
            print(f"{stage.rule} does not fit: {_bytes(stage.device_bytes)} on a device of {_bytes(memory)}")


if __name__ == "__main__":
    run(plan)
