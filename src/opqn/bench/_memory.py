"""Peak memory of one piece of work, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from opqn.errors import OpqnError

MEBIBYTE: Final = 1 << 20


class PeakMemory(NamedTuple):
    """Resident memory, in bytes."""

    growth: int
    """What the work added at its peak to what the process held before."""
    peak: int
    """The most that the process held while it worked, interpreter and inputs included."""


def peak_memory(prepare: Callable[..., Any], work: Callable[..., object], *arguments: Any) -> PeakMemory:
    """Measure ``work(*arguments, prepare(*arguments))`` in a fresh process; not what ``prepare`` takes.

    Args:
        prepare: makes the inputs, and may load what the work needs anyway; a function that a new process can import.
        work: what is measured; the same holds.
        arguments: of both; they are pickled.

    Raises:
        OpqnError: not on Linux, or the measuring process died.
    """
    if sys.platform != "linux":
        raise OpqnError("peak memory is read from /proc and can be measured on Linux only; pass memory=False")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(prepare, work, arguments, sender))
    child.start()
    sender.close()
    try:
        growth, peak = receiver.recv()
    except EOFError as error:
        raise OpqnError("the process that measures memory died; its error stands above, or memory ran short") from error
    finally:
        child.join()
        receiver.close()
    return PeakMemory(growth, peak)


def _measure(prepare: Callable[..., Any], work: Callable[..., object], arguments: tuple[Any, ...], answer: Any) -> None:
    inputs = prepare(*arguments)
    # VmHWM, started afresh, and not getrusage: ru_maxrss survives exec, so a child begins at its parent's peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    work(*arguments, inputs)
    peak = _status_bytes("VmHWM")
    answer.send((peak - before, peak))
    answer.close()


def _status_bytes(field: Literal["VmRSS", "VmHWM"]) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OpqnError(f"/proc/self/status has no {field}; peak memory needs a Linux kernel with procfs")
