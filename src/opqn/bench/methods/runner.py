"""A whole comparison: every training of a suite, each with a record that a later run goes on from."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final, Self

import torch

from opqn._files import atomic_write_bytes
from opqn.bench.methods.jobs import COSFACE, RECORD_VERSION, Job, Shape, Test, run_job
from opqn.bench.methods.splits import check_split, content_hashes, draw_splits
from opqn.bench.methods.suites import Suite, SuiteData
from opqn.config import TrainingSettings, load_settings
from opqn.data.folders import scan_folder
from opqn.data.splits import Split
from opqn.errors import DataError, OpqnError
from opqn.model import CONFIG_FILE
from opqn.training import TrainingInterruptedError

RECORDS: Final = "records"
WATCH_SECONDS: Final = 1.0
START: Final = "start"  # the entry of the network that all methods start from

OnStage = Callable[[str], None]


def run_suite(
    suite: Suite,
    data: Path,
    out: Path,
    *,
    jobs: int = 0,
    device: str = "auto",
    on_stage: OnStage = lambda _stage: None,
) -> list[dict[str, Any]]:
    """Train and measure everything of a suite whose data are there, and return the records.

    ``out/records`` gets a JSON file a training as soon as it is done. A later call with the same arguments takes them
    from there, and goes on with trainings that were interrupted.

    Args:
        suite: see ``opqn.bench.methods.suites.SUITES``.
        data: folder of prepared data sets, ``data/NAME/images`` and, of recipes, ``data/NAME/splits``.
        out: folder to fill.
        jobs: trainings at a time, each with its share of the CPUs; 0: as many as CPUs, or one on a GPU.
        device: as ``train.device``.
        on_stage: told what begins, and how each training ended.

    Raises:
        DataError: none of the suite's data sets is below ``data``, or a query is in a gallery or trained on.
        TrainingInterruptedError: Ctrl-C or SIGTERM; the same call goes on.
        OpqnError: a training failed; the others are done first, and have their records.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    jobs = jobs or (cpus if on_cpu else 1)
    present = [part for part in suite.data if (data / part.name / "images").is_dir()]
    for part in suite.data:
        if part not in present:
            on_stage(f"no {part.name} in {data}, left out. {part.about}")
    if not present:
        names = ", ".join(part.name for part in suite.data)
        raise DataError(
            f"{data} has none of {names}; fill it with `opqn data prepare NAME --source DOWNLOAD --out {data}/NAME`, "
            f"or `opqn data synthesize --out {data}/synthetic`"
        )
    plan = _Plan(suite, data, out, "cpu" if on_cpu else device)
    with _Workers(jobs, max(1, cpus // jobs)) as workers:
        on_stage("checking by content that no query is in a gallery or trained on")
        parts = [(part, seed) for seed in suite.seeds for part in present]
        for part, seed in parts:
            plan.prepare(part, seed)
        starts = [plan.start(part, seed) for part, seed in parts if part.start is not None]
        _carry_out(workers, starts, out, "networks to start from", on_stage)
        trainings = [job for part, seed in parts for job in plan.jobs(part, seed)]
        return _carry_out(workers, trainings, out, "trainings", on_stage)


class _Plan:
    """The jobs of a suite."""

    def __init__(self, suite: Suite, data: Path, out: Path, device: str) -> None:
        self.suite, self.data, self.out = suite, data, out
        self.device = device
        self.hashes: dict[Path, dict[str, str]] = {}
        self.splits: dict[tuple[str, int], tuple[Split, tuple[Test, ...]]] = {}

    def prepare(self, part: SuiteData, seed: int) -> None:
        """Draw or load the splits of a data set, and check them."""
        root = self.data / part.name / "images"
        if part.draw is not None:
            hashes = self._hashes(root, scan_folder(root).paths)
            drawn = draw_splits(root, part.name, part.draw, seed, hashes)
            train = drawn.seen
            tests: tuple[Test, ...] = (
                Test(part.name, "unseen", root, drawn.unseen),
                Test(part.name, "seen", root, drawn.seen),
            )
        else:
            found_train = self._load_split(part.name, part.train)
            if found_train is None:
                raise DataError(f"{self.data / part.name / 'splits'} has no {part.train}.json; use `opqn data prepare`")
            train = found_train
            tests = tuple(
                Test(data_label(part.name, where.data), where.protocol, self.data / where.data / "images", split)
                for where in part.tests
                if (split := self._load_split(where.data, where.file)) is not None
            )
        if not tests:
            raise DataError(f"{self.data / part.name} has no split to test with; prepare it with `opqn data prepare`")
        trained = self._hashes(root, train.train)
        for test in tests:
            tested = self._hashes(test.root, (*test.split.gallery, *test.split.query))
            check_split(test.split, tested, trained.values())
        self.splits[part.name, seed] = train, tests

    def _load_split(self, name: str, file: str) -> Split | None:
        folder = self.data / name
        path = folder / "splits" / f"{file}.json"
        return Split.load(path, folder / "images") if path.is_file() else None

    def _hashes(self, root: Path, paths: Sequence[str]) -> dict[str, str]:
        known = self.hashes.setdefault(root, {})
        known.update(content_hashes(root, [path for path in paths if path not in known]))
        return {path: known[path] for path in paths}

    def settings(self, part: SuiteData, seed: int, bits: int, *overrides: str) -> TrainingSettings:
        """Put a training's settings together."""
        fixed = (f"train.seed={seed}", f"train.device={self.device}", "train.validation=none")
        return load_settings(
            part.preset, num_bits=bits, overrides=[*self.suite.overrides, *part.overrides, *overrides, *fixed]
        )

    def start(self, part: SuiteData, seed: int) -> Job:
        """Return the training of the network that all methods start from."""
        train, tests = self.splits[part.name, seed]
        settings = self.settings(part, seed, self.suite.bits[-1], f"method={COSFACE}", *(part.start or ()))
        return Job(
            part.name,
            START,
            None,
            seed,
            settings,
            train_root(self.data, part),
            train,
            tests,
            (),
            self._folder(START, part, seed),
        )

    def jobs(self, part: SuiteData, seed: int) -> Iterator[Job]:
        """Yield the trainings of a data set and a seed."""
        train, tests = self.splits[part.name, seed]
        start: tuple[str, ...] = ()
        fingerprint = None
        if part.start is not None:
            folder = self._folder(START, part, seed) / "model"
            fingerprint = json.loads((folder / CONFIG_FILE).read_bytes())["fingerprint"]
            start = (f"train.start={json.dumps(str(folder))}",)
        for entry in self.suite.entries:
            lengths = self.suite.bits[-1:] if entry.label == COSFACE else self.suite.bits
            for bits in lengths:
                settings = self.settings(part, seed, bits, *entry.overrides, *start)
                shapes = [self.settings(part, seed, length).model for length in self.suite.bits]
                yield Job(
                    part.name,
                    entry.label,
                    None if entry.label == COSFACE else bits,
                    seed,
                    settings,
                    train_root(self.data, part),
                    train,
                    tests,
                    tuple(Shape(shape.num_books, shape.num_words) for shape in shapes)
                    if entry.label == COSFACE
                    else (),
                    self._folder(entry.label, part, seed, bits),
                    fingerprint,
                )

    def _folder(self, label: str, part: SuiteData, seed: int, bits: int | None = None) -> Path:
        name = label.replace(", ", "-").replace(" ", "-")
        return self.out / "runs" / part.name / (f"{name}-seed{seed}" if bits is None else f"{name}-{bits}-seed{seed}")


def data_label(trained_on: str, tested_on: str) -> str:
    """Return what the tables call a data set."""
    return tested_on if tested_on == trained_on else f"{tested_on}, trained on {trained_on}"


def train_root(data: Path, part: SuiteData) -> Path:
    """Return the folder that a data set's paths start from."""
    return data / part.name / "images"


def read_records(out: Path) -> list[dict[str, Any]]:
    """Return the records that a comparison left in ``out``, by file name.

    Raises:
        DataError: a file there is no record.
    """
    return [record for path in sorted((out / RECORDS).rglob("*.json")) for record in _read_records(path)]


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of one training; none where there is no such file, or one of another version."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no record of a comparison: {error}; delete it, and it is measured anew") from error
    if not isinstance(document, dict) or document.get("version") != RECORD_VERSION:
        return []
    records = document.get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path} is no record of a comparison; delete it, and it is measured anew")
    return records


def _carry_out(workers: _Workers, jobs: Sequence[Job], out: Path, what: str, on_stage: OnStage) -> list[dict[str, Any]]:
    """Run the jobs that have no record yet; return the records of all, in their order."""
    paths = [out / RECORDS / f"{job.name}.json" for job in jobs]
    records = [
        [record for record in _read_records(path) if record.get("key") == job.key]
        for path, job in zip(paths, jobs, strict=True)
    ]
    todo = [i for i, job in enumerate(jobs) if not records[i] or (job.entry == START and not _has_model(job))]
    if jobs:
        on_stage(f"{what}: {len(jobs)}, {len(jobs) - len(todo)} of them done before")
    failures: list[str] = []
    began, done = time.monotonic(), 0
    for i, found, problem in workers.run(todo, [jobs[i] for i in todo]):
        done += 1
        if not found:
            failures.append(f"{jobs[i].name}: {problem}")
            on_stage(f"{done}/{len(todo)} {failures[-1]}")
            continue
        document = {"version": RECORD_VERSION, "records": found}
        atomic_write_bytes(paths[i], (json.dumps(document, separators=(",", ":")) + "\n").encode())
        records[i] = found
        left = (time.monotonic() - began) / done * (len(todo) - done)
        on_stage(f"{done}/{len(todo)} {jobs[i].name}: {_figures(found[0])}; about {left / 60:.0f} min left")
    if failures:
        raise OpqnError(
            f"{len(failures)} of {len(todo)} {what} failed, the first is {failures[0]}. The others are in "
            f"{out / RECORDS}; the same command tries those that failed again"
        )
    return [record for found in records for record in found]


def _has_model(job: Job) -> bool:
    return (job.folder / "model" / CONFIG_FILE).is_file()


def _figures(record: dict[str, Any]) -> str:
    maps = record["rows"][-1]["protocols"]
    found = ", ".join(f"{protocol} mAP {report['mean_average_precision']:.3f}" for protocol, report in maps.items())
    return f"{found} in {record['train_seconds']:.0f} s"


class _Workers:
    """Processes that each run one job at a time, and stop in good order."""

    def __init__(self, count: int, threads: int) -> None:
        # A forked child would inherit the locks of torch's threads.
        context = multiprocessing.get_context("spawn")
        self.stop = context.Event()
        self.pool = ProcessPoolExecutor(count, context, _begin_worker, (self.stop, threads))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def run(self, numbers: Sequence[int], jobs: Sequence[Job]) -> Iterator[tuple[int, list[dict[str, Any]], str]]:
        """Yield number, records and, where there are none, what went wrong, as jobs end.

        Raises:
            TrainingInterruptedError: Ctrl-C or SIGTERM came; trainings have saved where they were.
            OpqnError: a worker was killed, mostly for want of memory.
        """
        with _interrupt_on_sigterm():
            try:
                futures: dict[Future[list[dict[str, Any]]], int] = {
                    self.pool.submit(run_job, job): number for number, job in zip(numbers, jobs, strict=True)
                }
                for future in as_completed(futures):
                    try:
                        yield futures[future], future.result(), ""
                    except BrokenProcessPool as error:
                        raise OpqnError(
                            "a training's process was killed, perhaps for want of memory; try --jobs 1. The same "
                            "command goes on"
                        ) from error
                    except TrainingInterruptedError as error:
                        raise KeyboardInterrupt from error
                    except OpqnError as error:
                        yield futures[future], [], str(error)
            except KeyboardInterrupt:
                self.stop.set()
                self.pool.shutdown(wait=True, cancel_futures=True)
                raise TrainingInterruptedError(
                    "stopped; what was measured and where trainings were is kept, the same command goes on"
                ) from None


def _begin_worker(stop: Event, threads: int) -> None:
    # Ctrl-C reaches every process of a terminal; only a training has something to save, and sets a handler of its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=_watch, args=(stop,), daemon=True).start()


def _watch(stop: Event) -> None:
    """End this process when the parent says so or is gone; a training saves a checkpoint first."""
    parent = multiprocessing.parent_process()
    while not stop.wait(WATCH_SECONDS):
        if parent is not None and wait([parent.sentinel], 0):
            break
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
