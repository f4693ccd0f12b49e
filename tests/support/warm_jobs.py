"""Jobs of the pipeline in processes that are forked after the imports of other packages, such as torch.

Imports take most of a tiny job's time. Nothing of this repository is preloaded: every job reads its package.

A job's shell reads `BASH_ENV`, so that it finds another `python`. This gives the job's command, folder, environment and
open files to a server, which forks a process for it; every other command starts the real interpreter.
"""

import atexit
import functools
import gc
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path

# What jobs import. Transformers loads its modules late, so those that all jobs need are named.
PRELOADED = [
    *("torch", "transformers", "transformers.modeling_utils", "transformers.modeling_layers"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto"),
    *("pandas", "pyarrow.parquet", "scipy.stats", "typer", "pydantic", "safetensors.torch", "tqdm", "yaml"),
]
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # read at imports
_running: list[subprocess.Popen[bytes]] = []  # a server ends when its standard input is closed
CLIENT = """import json, os, socket, sys
arguments = sys.argv[1:]
if arguments[:1] != ["-m"] or not arguments[1].startswith("tangram.commands."):
    os.execv({python!r}, [{python!r}, *arguments])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([arguments[1:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    status = server.recv(1)
sys.exit(status[0] if status else 1)
"""


@functools.cache
def environment_of_warm_jobs() -> dict[str, str]:
    """Start the server, and return the variables with which Snakemake's jobs use it."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    program, client, address, at_start = (folder / name for name in ("python", "client.py", "server", "at_start"))
    at_start.write_text(f"PATH={shlex.quote(str(folder))}:$PATH\n")
    client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", str(client)])} "$@"\n')
    program.chmod(0o755)
    command = [sys.executable, "-P", __file__, str(address)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | OFFLINE)
    assert server.stdout is not None
    server.stdout.readline()  # it listens
    _running.append(server)
    return {"BASH_ENV": str(at_start)}


def report_status(job: socket.socket) -> None:
    """Fork the process of a job and return in it; the caller's process waits for its end, and tells the status.

    So a job may end in any way: replace itself by another program, as `torchrun` does, or be killed.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process:
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        job.sendall(bytes([status if status >= 0 else 128 - status]))
        os._exit(0)
    job.close()


def serve(address: str) -> list[str]:
    """Fork a process per job, and return in that process the job's command.

    The process has the folder, environment, path and open files of the job.
    """
    for name in PRELOADED:
        import_module(name)
    gc.freeze()  # so that a job's collections of garbage do not copy these modules' memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
                sys.exit()  # the tests have ended, or were killed
            job = listener.accept()[0]
            files = socket.recv_fds(job, 1, 3)[1]
            if os.fork() == 0:
                break
            job.close()
            for file in files:
                os.close(file)
    arguments, folder, environment = json.loads(b"".join(iter(lambda: job.recv(2**16), b"")))
    report_status(job)
    for file, own in enumerate(files):
        os.dup2(own, file)
        os.close(own)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return arguments


def main() -> None:
    """Serve; then run one job as `python -m` does, without the slow freeing of all modules at its end."""
    module, *arguments = serve(sys.argv[1])
    sys.argv, status = [module, *arguments], 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
