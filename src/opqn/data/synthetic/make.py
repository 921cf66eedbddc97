"""Making a data set: a folder a person, splits, the truth, in several processes, and going on after a stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from filelock import FileLock, Timeout

from opqn._files import atomic_write_bytes, explain_os_errors
from opqn.data.folders import scan_folder
from opqn.data.splits import make_splits
from opqn.data.synthetic.anatomy import Anatomy, load_anatomy
from opqn.data.synthetic.folder import Plan, claim, make_person, truth_of
from opqn.data.synthetic.people import Person, draw_person
from opqn.data.synthetic.render import Picture, render
from opqn.data.synthetic.scenes import Scene, draw_scene
from opqn.data.synthetic.settings import SyntheticSettings
from opqn.data.synthetic.wheel import REQUIREMENT
from opqn.errors import ConfigError, DataError, OpqnError

_MOST: Final = 99_999
_LOCK: Final = ".opqn-synthesize.lock"
_SOURCE: Final = """\
# Synthetic faces

{people} people with {images} pictures each, {size} x {size} pixels, drawn by opqn with seed {seed}. None of them
exists. `truth.jsonl` says, a line a person, everything that was drawn.

Terms: CC0 1.0, no rights reserved. The shape of the head, its variations and expressions are those of MakeHuman
(www.makehumancommunity.org), which its authors gave away under CC0 1.0; they were read from the data files of the
Python package {requirement}, whose Apache-2.0 licence covers its code. Skin, hair, light, backgrounds and everything
else are computed by opqn.
"""


class Synthesized(NamedTuple):
    """Where a synthetic data set stands: the folder of people, the two split files, and the truth."""

    root: Path
    seen: Path
    unseen: Path
    truth: Path


class OnProgress(Protocol):
    """Called with how many pictures are done, and how many there will be."""

    def __call__(self, done: int, of: int, /) -> None:
        """Show it."""


def synthesize(
    out: str | Path,
    people: int,
    images: int,
    seed: int = 0,
    *,
    settings: SyntheticSettings | None = None,
    size: int = 112,
    processes: int = 0,
    unseen_people: float = 0.25,
    on_progress: OnProgress = lambda _done, _of: None,
) -> Synthesized:
    """Draw people who do not exist in ``out/images/person-00001/00001.jpg`` and so on, aligned as face networks expect.

    Beside them stand ``splits/seen.json`` and ``unseen.json``, ``truth.jsonl``, ``SOURCE.md``, and ``synthetic.json``,
    which says what they were made with. The same seed, settings and size give the same bytes on the same machine,
    whatever the number of processes; the first people of a larger set are those of a smaller one. A call after an
    interruption goes on: people who are complete are kept.

    Args:
        out: folder to fill.
        people: how many, 3 to 99,999.
        images: of each person, 2 to 99,999.
        seed: of everything, at least 0.
        settings: how much pictures of a person differ.
        size: height and width in pixels, 32 to 512.
        processes: how many to draw in; 0 for as many as there are cores. With more than one, a script needs the usual
            ``if __name__ == "__main__":`` around the call.
        unseen_people: share of the people who are never trained on; see :func:`opqn.data.splits.make_splits`.
        on_progress: called after each person.

    Raises:
        ConfigError: an argument out of range, or ``out`` holds faces made with other ones.
        DataError: ``out/images`` holds other images, or another process is drawing into ``out``.
        OpqnError: the package anny is missing (extra ``synthetic``), the disk is full, ``out`` cannot be written, or a
            process did not start or was killed.
        CorruptFileError: a file of the package anny is damaged.
    """
    _check(people, images, seed, size, processes, unseen_people)
    anatomy = load_anatomy()
    out = Path(out)
    plan = Plan(out / "images", images, seed, size, settings or SyntheticSettings())
    lock = FileLock(out / _LOCK, timeout=0)
    with explain_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise DataError(f"another process is drawing into {out}; wait for it, or choose another folder") from None
    try:
        return _fill(out, plan, people, processes or _cores(), unseen_people, anatomy, on_progress)
    finally:
        lock.release()


def draw(
    person: int, image: int, seed: int = 0, *, settings: SyntheticSettings | None = None, size: int = 112
) -> tuple[Person, Scene, Picture]:
    """Draw one picture without writing it: the same as :func:`synthesize` makes, before it becomes a JPEG file.

    Args:
        person: number, from 1.
        image: number, from 1.
        seed: as there.
        settings: as there.
        size: as there.

    Raises:
        ConfigError: a number out of range.
        OpqnError: the package anny is missing.
        CorruptFileError: a file of it is damaged.
    """
    if min(person, image) < 1 or seed < 0 or not 32 <= size <= 512:
        raise ConfigError(f"person {person}, image {image}, seed {seed}, size {size}: one is out of range")
    settings = settings or SyntheticSettings()
    anatomy = load_anatomy()
    who = draw_person(np.random.default_rng([seed, person]), anatomy, settings.identity)
    scene = draw_scene((seed, person, image), who, settings)
    return who, scene, render(who, scene, anatomy, size)


def _check(people: int, images: int, seed: int, size: int, processes: int, unseen_people: float) -> None:
    if not (3 <= people <= _MOST and 2 <= images <= _MOST):
        raise ConfigError(f"{people} people with {images} images; give 3 to {_MOST} people and 2 to {_MOST} images")
    if seed < 0 or processes < 0 or not 32 <= size <= 512:
        raise ConfigError(
            f"seed is {seed}, processes {processes} and size {size}; the first two must be at least 0, and the size 32 "
            "to 512 pixels"
        )
    unseen = round(unseen_people * people) if 0 < unseen_people < 1 else 0
    if unseen < 1 or people - unseen < 2:
        raise ConfigError(
            f"unseen_people {unseen_people} of {people} people are {unseen}; choose a share between 0 and 1 that "
            "leaves at least 2 people to train on and 1 who is not"
        )


def _fill(
    out: Path,
    plan: Plan,
    people: int,
    processes: int,
    unseen_people: float,
    anatomy: Anatomy,
    on_progress: OnProgress,
) -> Synthesized:
    claim(out, plan)
    missing = [number for number in range(1, people + 1) if truth_of(plan, number) is None]
    done = (people - len(missing)) * plan.images
    on_progress(done, people * plan.images)
    for _ in _made(plan, missing, min(processes, len(missing)), anatomy):
        done += plan.images
        on_progress(done, people * plan.images)
    folder = scan_folder(plan.root)
    if len(folder.paths) != people * plan.images:
        raise DataError(
            f"{plan.root} holds {len(folder.paths)} images and {people} people with {plan.images} are wanted; ask for "
            "as many people as there are, or choose an empty folder"
        )
    truths = [truth_of(plan, number) or b"" for number in range(1, people + 1)]
    splits = make_splits(folder, name="synthetic", seed=plan.seed, unseen_people=unseen_people)
    result = Synthesized(plan.root, out / "splits" / "seen.json", out / "splits" / "unseen.json", out / "truth.jsonl")
    splits.seen.save(result.seen)
    splits.unseen.save(result.unseen)
    atomic_write_bytes(result.truth, b"".join(truths))
    source = _SOURCE.format(
        people=people, images=plan.images, size=plan.size, seed=plan.seed, requirement=REQUIREMENT.replace("==", " ")
    )
    atomic_write_bytes(out / "SOURCE.md", source.encode())
    return result


def _made(plan: Plan, numbers: list[int], processes: int, anatomy: Anatomy) -> Iterator[None]:
    """Make people, here or in other processes; yield after each."""
    if processes <= 1:
        for number in numbers:
            make_person(plan, number, anatomy, lambda: False)
            yield
        return
    context = multiprocessing.get_context("spawn")  # a fork of a program with threads may hang
    stop = context.Event()
    pool = ProcessPoolExecutor(processes, context, _start, (plan, stop))
    try:
        for made in as_completed([pool.submit(_make_here, number) for number in numbers]):
            made.result()
            yield
    except BrokenProcessPool as error:
        raise OpqnError(
            "a process that drew faces could not start or was killed, perhaps for lack of memory; the same call goes "
            "on, with processes=1 if need be"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_here: dict[str, Any] = {}
"""In a process of the pool: what it was started with."""


def _start(plan: Plan, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops the others
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _here.update(plan=plan, stop=stop, anatomy=load_anatomy())


def _leave_with_parent() -> None:
    """A process of a pool whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_here(number: int) -> None:
    make_person(_here["plan"], number, _here["anatomy"], _here["stop"].is_set)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
