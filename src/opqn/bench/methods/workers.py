"""Processes that each run one training at a time, and that end in good order whatever ends them.

A training that is told to stop saves where it is, so nothing here may kill one. Every worker holds one end of a pipe
whose other end only the parent holds: that the pipe is closed tells a worker to stop, whether the parent closed it or
is no more. Signals that a terminal or a service manager sends to all processes at once do no harm.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from enum import Enum, auto
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

import torch

from opqn._files import atomic_write_bytes
from opqn.bench.methods.jobs import RECORD_VERSION, Job, clean, measure, train_job
from opqn.errors import OpqnError
from opqn.training import Progress, TrainingInterruptedError

GRACE_SECONDS: Final = 5.0
"""How long an idle worker that was told to stop waits for the pool to end it, before it ends by itself."""
WAIT_SECONDS: Final = 300.0
"""After so long without a training that ends, the caller is given the word."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Workers:
    """A pool of processes for :class:`Job`; use it with ``with``.

    Args:
        count: processes.
        threads: of each.
    """

    def __init__(self, count: int, threads: int) -> None:
        # A forked child would inherit the locks of torch's threads.
        context = multiprocessing.get_context("spawn")
        self._told, self._tell = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(count, context, _begin, (self._told, threads))
        self._handler: Any = None

    def __enter__(self) -> Self:
        """Let SIGTERM do what Ctrl-C does."""
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait for the workers; after an error, tell them to stop and save first.

        Raises:
            TrainingInterruptedError: Ctrl-C or SIGTERM came.
        """
        try:
            if error is not None:
                self._tell.close()
            self._pool.shutdown(wait=True, cancel_futures=True)
        finally:
            self._tell.close()
            self._told.close()
            if self._handler is not None:
                signal.signal(signal.SIGTERM, self._handler)
        if isinstance(error, KeyboardInterrupt):
            raise TrainingInterruptedError(
                "stopped; what was measured and where trainings were is kept, the same command goes on"
            ) from None

    def run(self, jobs: Sequence[tuple[Job, Path]], on_wait: Callable[[], None]) -> Iterator[tuple[int, str]]:
        """Carry out jobs and write the records of each to its file; yield its number and what went wrong, if anything.

        ``on_wait`` is called whenever nothing has ended for :data:`WAIT_SECONDS`.

        Raises:
            KeyboardInterrupt: a worker was told to stop.
            OpqnError: a worker was killed, mostly for want of memory.
        """
        with _held_back():
            futures: dict[Future[None], int] = {
                self._pool.submit(_work, job, path): number for number, (job, path) in enumerate(jobs)
            }
        pending = set(futures)
        while pending:
            ended, pending = wait(pending, WAIT_SECONDS, FIRST_COMPLETED)
            if not ended:
                on_wait()
            for future in ended:
                error = future.exception()
                if isinstance(error, TrainingInterruptedError):
                    raise KeyboardInterrupt from error
                if isinstance(error, BrokenProcessPool):
                    raise OpqnError(
                        "a training's process was killed, perhaps for want of memory; try --jobs 1. The same command "
                        "goes on"
                    ) from error
                yield futures[future], _in_a_line(error)


def _in_a_line(error: BaseException | None) -> str:
    if error is None or isinstance(error, OpqnError):
        return str(error or "")
    first = next(iter(str(error).splitlines()), "")  # such as that a GPU has no memory left
    return f"{type(error).__name__}: {first}"


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals back, also from processes that are started here, until these are ready for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In a worker


class _Phase(Enum):
    IDLE = auto()
    TRAINING = auto()
    MEASURING = auto()


class _Here:
    """What a worker is at; signal handlers and threads look at it."""

    def __init__(self) -> None:
        self.phase = _Phase.IDLE
        self.is_told = threading.Event()
        self.is_idle = threading.Event()
        self.is_idle.set()

    def go_on(self, phase: _Phase) -> None:
        """Begin what comes next, unless told to stop."""
        self.phase = phase
        if self.is_told.is_set():
            raise _stopped()


_HERE: Final = _Here()


def _begin(told: Connection, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_term)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # FAISS, which is loaded later; more threads than cores get in its way
    if told.poll(0):  # while this process started
        _HERE.is_told.set()
    threading.Thread(target=_watch, args=(told,), daemon=True).start()


def _work(job: Job, path: Path) -> None:
    """Carry out a job. Its records are on the disk before the training is deleted, so that no work is done twice."""
    _HERE.is_idle.clear()
    try:
        _HERE.go_on(_Phase.TRAINING)
        trained = train_job(job, _on_progress)
        _HERE.go_on(_Phase.MEASURING)
        records = measure(job, trained)
        _HERE.phase = _Phase.IDLE
        document = {"version": RECORD_VERSION, "records": records}
        atomic_write_bytes(path, (json.dumps(document, separators=(",", ":")) + "\n").encode())
        clean(job)
    finally:
        _HERE.phase = _Phase.IDLE
        _HERE.is_idle.set()


def _on_term(number: int, frame: object) -> None:
    """Break off measuring. A training has its own handler; while it loads its images, it takes no notice."""
    del number, frame
    if _HERE.phase is _Phase.MEASURING:
        _HERE.phase = _Phase.IDLE  # once is enough
        raise _stopped()


def _on_progress(_progress: Progress) -> None:
    if _HERE.is_told.is_set():
        os.kill(os.getpid(), signal.SIGTERM)  # if this was told to stop before the training had its handler


def _watch(told: Connection) -> None:
    """Wait until the pipe is closed, stop what is done here, and see to it that this process ends."""
    told.poll(None)
    _HERE.is_told.set()
    os.kill(os.getpid(), signal.SIGTERM)
    # The pool ends its idle workers, unless one of them was killed, or the parent was, and then nothing would.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join(GRACE_SECONDS)
    _HERE.is_idle.wait()
    os._exit(1)


def _stopped() -> TrainingInterruptedError:
    return TrainingInterruptedError("told to stop")
