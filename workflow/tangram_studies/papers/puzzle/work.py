"""Independent tasks in several processes of one thread each, with kept results: a killed study resumes from them."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tangram.cli import use_threads
from tangram.provenance import fingerprint

Arguments = Mapping[str, Any]  # of a task, as JSON


def _start(seed: int, device: str) -> None:
    use_threads(1, seed, device)


class Work:
    """Runs functions of a module on many arguments, in this process or in several.

    Results are JSON. Each is appended to a file as soon as it exists, under a key of the function, its arguments and
    the study's identity; a result that the file holds is not computed again.

    Args:
        path: file of the results.
        identity: fingerprint of all that results depend on besides the arguments.
        processes: number of processes; with one, tasks run here.
        seed: torch's seed in the processes.
        device: torch's device.
    """

    def __init__(self, path: Path, identity: str, processes: int, seed: int, device: str):
        self._path, self._identity, self._processes = path, identity, processes
        self._start, self._known = (seed, device), dict[str, Any]()
        self._pool: ProcessPoolExecutor | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["key"]] = entry["result"]
                except (ValueError, KeyError, TypeError):
                    continue  # the line that a kill cut off

    def run(self, function: Callable[..., Any], tasks: Sequence[Arguments], label: str) -> list[Any]:
        """Return the results of ``function(**task)`` in the order of the tasks.

        Args:
            function: a module's function, which processes import by its name.
            tasks: the keyword arguments of every call.
            label: label of the progress bar.
        """
        keys = [self._key(function, task) for task in tasks]
        missing = {key: task for key, task in zip(keys, tasks, strict=True) if key not in self._known}
        with tqdm(total=len(missing), desc=f"study_puzzle: {label}", mininterval=5) as bar:
            for key, result in self._results(function, missing):
                self._keep(key, result)
                bar.update()
        return [self._known[key] for key in keys]

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _results(self, function: Callable[..., Any], tasks: Mapping[str, Arguments]) -> Any:
        if self._processes == 1 or not tasks:
            for key, task in tasks.items():
                yield key, function(**task)
            return
        if self._pool is None:  # for a single task, too: this process may have more threads, and rounds otherwise
            context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
            self._pool = ProcessPoolExecutor(self._processes, context, initializer=_start, initargs=self._start)
        futures = {self._pool.submit(function, **task): key for key, task in tasks.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _key(self, function: Callable[..., Any], task: Arguments) -> str:
        arguments = json.dumps({name: _plain(value) for name, value in task.items()}, sort_keys=True)
        return fingerprint([self._identity, function.__module__, function.__qualname__, arguments], [])

    def _keep(self, key: str, result: Any) -> None:
        result = json.loads(json.dumps(result))  # so that a resumed study reads the same values
        self._known[key] = result
        with self._path.open("a") as stream:
            stream.write(json.dumps({"key": key, "result": result}) + "\n")


def _plain(value: Any) -> Any:
    """Return an argument as JSON; places of files are no part of a result."""
    return value.key if hasattr(value, "key") else value
