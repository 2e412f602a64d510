"""The pool of code generation processes. A process that dies takes one request with it, not the compiler."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cortado.backends import worker
from cortado.errors import CortadoError


@dataclass(frozen=True)
class Reply:
    """output: object bytes or assembly text. error: why there is none. messages: what LLVM printed meanwhile."""

    output: Any
    error: str
    messages: str


class WorkerProcess:
    """One process and its pipes; used by one thread at a time. Starts without being waited for."""

    def __init__(self) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._read = 0
        command = [sys.executable, "-I", "-S", worker.__file__, _llvmlite_folder()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages)

    def ask(self, request: dict[str, Any]) -> Reply:
        """The reply; a Reply with an error also where the process died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            worker.write_message(self._process.stdin, request)
            answer = worker.read_message(self._process.stdout)
        except (EOFError, OSError):
            code = self._process.wait()
            return Reply(b"", f"the code generator ended with exit code {code}", self._new_messages())
        return Reply(answer["output"], answer["error"], self._new_messages())

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # the process died with a request in the pipe
                    pipe.close()
        if self.alive():
            self._process.kill()
        self._process.wait()
        self._messages.close()

    def _new_messages(self) -> str:
        self._messages.seek(self._read)
        new = self._messages.read()
        self._read += len(new)
        return new.decode(errors="replace")


class Pool:
    """Idle processes, kept for the next call. Safe for use by several threads."""

    def __init__(self) -> None:
        self._idle: list[WorkerProcess] = []
        self._lock = threading.Lock()

    def start(self, count: int) -> None:
        """Have at least `count` processes starting up or idle."""
        with self._lock:
            self._idle += [WorkerProcess() for _ in range(count - len(self._idle))]

    def run(self, requests: Sequence[dict[str, Any]], jobs: int) -> list[Reply]:
        """The replies, in the order of the requests; at most `jobs` processes at once, longest requests first."""
        self.start(min(jobs, len(requests)))
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i]["ir"]))
        with ThreadPoolExecutor(max_workers=max(jobs, 1)) as threads:
            replies = dict(zip(order, threads.map(lambda i: self._ask(requests[i]), order), strict=True))
        return [replies[i] for i in range(len(requests))]

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()

    def _ask(self, request: dict[str, Any]) -> Reply:
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is not None and not process.alive():
            process.close()
            process = None
        process = process or WorkerProcess()
        reply = process.ask(request)
        if process.alive():
            with self._lock:
                self._idle.append(process)
        else:
            process.close()
        return reply


def shared_pool() -> Pool:
    """This process's pool: starting LLVM takes longer than most requests. A fork gets its own."""
    return _pool_of(os.getpid())


@functools.cache
def _pool_of(process_id: int) -> Pool:
    pool = Pool()
    atexit.register(pool.close)
    return pool


@functools.cache
def _llvmlite_folder() -> str:
    found = importlib.util.find_spec("llvmlite")
    if found is None or not found.submodule_search_locations:
        raise CortadoError("the package llvmlite, which generates the code, is not installed: pip install llvmlite")
    return str(Path(next(iter(found.submodule_search_locations))).parent)
