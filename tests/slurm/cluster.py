"""A private SLURM of several nodes on one machine: `python tests/slurm/cluster.py up DIR`, `… down DIR`.

Own munged, slurmctld and slurmds, all on loopback, all state below DIR; for root, without systemd, from Debian's
packages (`apt install --no-install-recommends slurmctld slurmd slurm-client munge`). `up` prints the exports to eval.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "squeue")
PACKAGES = "slurmctld slurmd slurm-client munge"
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

# One machine without cgroups; memory use is polled, not limited; short timeouts; a long record of finished jobs.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.log
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0,requeue_delay=1
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=10
InactiveLimit=0
KillWait=2
OverTimeLimit=0
CompleteWait=0
MinJobAge=3600
JobRequeue=0
MaxArraySize=1001
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=500 State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={memory} State=UNKNOWN\n"
)

# The executor plugin removes SLURM_CONF from its calls; these wrappers, first in PATH, restore it.
WRAPPER = '#!/bin/sh\nSLURM_CONF={conf} exec {program} "$@"\n'
# The plugin calls sacct when slurmctld does not answer. Without slurmdbd there is no sacct; this one calls squeue.
SACCT = """\
#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --name=*) name=${1#--name=} ;; --name) name=$2; shift ;; esac
    shift
done
exec squeue --noheader --array --states=all --format='%i|%T' --name "$name"
"""


def missing() -> str:
    """Return the reason why no cluster can start here, empty if one can."""
    if os.geteuid() != 0:
        return "a private SLURM needs root"
    lacking = [program for program in PROGRAMS if shutil.which(program, path=SBIN) is None]
    return f"{', '.join(lacking)} not found: apt install --no-install-recommends {PACKAGES}" if lacking else ""


def wait_for(what: Callable[[], object], seconds: float, message: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(message)
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [entry.getsockname()[1] for entry in sockets]


@dataclass(frozen=True)
class Cluster:
    """A running cluster with all files in a folder."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the cluster's users."""
        path = os.pathsep.join([str(self.folder / "bin"), SBIN])
        return os.environ | {"PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str) -> str:
        """Run a SLURM command and return its output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self, states: str = "running") -> list[list[str]]:
        """Return id, name, node and comment of the jobs in some states."""
        lines = self.call("squeue", "-h", "-r", "-t", states, "-o", "%i|%j|%N|%k").splitlines()
        return [line.split("|") for line in lines]

    def finished(self) -> list[dict[str, str]]:
        """Return SLURM's record of every finished job."""
        log = self.folder / "log" / "jobcomp.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def pid(self, daemon: str) -> int:
        """Return the process of `munged`, `slurmctld`, or `slurmd-n1`."""
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def start_controller(self) -> None:
        """Start slurmctld; a restarted one loads the saved state."""
        self.call("slurmctld", "-f", str(self.folder / "slurm.conf"))

    def start_node(self, name: str) -> None:
        """Start one node's slurmd."""
        (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)
        self.call("slurmd", "-f", str(self.folder / "slurm.conf"), "-N", name)

    def nodes(self) -> dict[str, str]:
        """Return every node's state."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            return dict(line.split() for line in self.call("sinfo", "-h", "-N", "-o", "%N %T").splitlines())
        return {}

    def down(self) -> None:
        """End all jobs, stop all daemons by their process ids, and remove the folder."""
        with contextlib.suppress(RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            if numbers := self.call("squeue", "-h", "-o", "%A").split():
                self.call("scancel", "-f", *numbers)
                wait_for(lambda: not self.jobs("all") or not self.call("squeue", "-h"), 10, "jobs do not end")
        for path in [*(self.folder / "run").glob("slurmd-*.pid"), *map(self._pid_file, ("slurmctld", "munged"))]:
            _stop(path)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _pid_file(self, daemon: str) -> Path:
        return self.folder / "run" / f"{daemon}.pid"


def _stop(pid_file: Path) -> None:
    """Terminate a process that this module started; kill it after a timeout."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10, "")
            return
        os.kill(pid, signal.SIGKILL)


def up(folder: Path, nodes: int = 3, cpus: int = 8, memory: int = 256_000) -> Cluster:
    """Start a cluster and return it once all nodes are idle.

    Args:
        folder: must not exist.
        nodes: how many; all of them are this machine.
        cpus: of each, as SLURM counts them.
        memory: of each in MB, as SLURM counts it.
    """
    folder.mkdir(parents=True)
    folder = folder.resolve()
    for name in ("log", "state", "spool", "run", "bin"):
        (folder / name).mkdir()
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    key = folder / "run" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    host, ports = socket.gethostname().split(".")[0], _free_ports(nodes + 1)
    conf = folder / "slurm.conf"
    lines = [NODE.format(name=f"n{i}", host=host, port=ports[i], cpus=cpus, memory=memory) for i in range(1, nodes + 1)]
    partition = SLURM_CONF.rindex("PartitionName")
    text = SLURM_CONF[:partition].format(host=host, ports=ports, folder=folder)
    conf.write_text(text + "".join(lines) + SLURM_CONF[partition:])
    for name in ("srun", "sbatch"):
        wrapper = WRAPPER.format(conf=conf, program=shutil.which(name, path=SBIN))
        (folder / "bin" / name).write_text(wrapper)
    (folder / "bin" / "sacct").write_text(SACCT)
    for path in (folder / "bin").iterdir():
        path.chmod(0o755)
    cluster = Cluster(folder)
    run = folder / "run"
    munge = [f"--{what}={run}/munge.{what.split('-')[0]}" for what in ("key-file", "socket", "seed-file")]
    cluster.call("munged", *munge, f"--pid-file={run}/munged.pid", f"--log-file={folder}/log/munged.log", "--force")
    cluster.call("slurmctld", "-f", str(conf), "-c")
    for i in range(1, nodes + 1):
        cluster.start_node(f"n{i}")
    try:
        wait_for(lambda: list(cluster.nodes().values()) == ["idle"] * nodes, 20, "the nodes do not come up")
    except TimeoutError:
        logs = "".join(path.read_text()[-2000:] for path in (folder / "log").glob("*.log"))
        cluster.down()
        raise RuntimeError(f"the nodes do not come up:\n{logs}") from None
    return cluster


def main() -> None:
    """Start or stop a cluster from the command line."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down"):
        sys.exit(f"usage: {sys.argv[0]} up|down DIR")
    if sys.argv[1] == "down":
        Cluster(Path(sys.argv[2]).resolve()).down()
    elif reason := missing():
        sys.exit(f"error: {reason}")
    else:
        environment = up(Path(sys.argv[2])).environment
        print(f"export SLURM_CONF={environment['SLURM_CONF']} PATH={environment['PATH'].split(os.pathsep)[0]}:$PATH")


if __name__ == "__main__":
    main()
