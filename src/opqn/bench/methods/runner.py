"""A whole comparison: every training of a suite, each with a record that a later run goes on from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from filelock import FileLock, Timeout

from opqn._files import check_writable
from opqn.baselines.product_quantization import import_faiss
from opqn.bench.methods.jobs import COSFACE, RECORD_VERSION, Job, Shape, Test, epochs_since, is_of
from opqn.bench.methods.splits import check_split, check_strangers, content_hashes, draw_splits
from opqn.bench.methods.suites import Suite, SuiteData, Where
from opqn.bench.methods.workers import Workers
from opqn.config import TrainingSettings, load_settings
from opqn.data.folders import scan_folder
from opqn.data.recipes import cross_set_split, read_names
from opqn.data.splits import Split
from opqn.errors import DataError, OpqnError
from opqn.model import CONFIG_FILE, find_device

RECORDS: Final = "records"
START: Final = "start"  # the entry of the network that all methods start from
PEOPLE_FILE: Final = "people.csv"  # of a prepared set: names of its people, for sets that have them too
_LOCK: Final = ".opqn-bench-methods.lock"

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
        on_stage: told what begins, how each training ended, and now and then how far the long ones are.

    Raises:
        ConfigError: a device that is not there.
        DataError: none of the suite's data sets is below ``data``, a query is in a gallery or trained on, a record is
            damaged, or another process is filling ``out``.
        TrainingInterruptedError: Ctrl-C or SIGTERM; the same call goes on.
        OpqnError: a training failed; the others are done first, and have their records. Or a package is missing, the
            disk is full, ``out`` cannot be written.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = find_device(device).type == "cpu"
    jobs = jobs or (cpus if on_cpu else 1)
    present = [part for part in suite.data if (data / part.name / "images").is_dir()]
    for part in suite.data:
        if part not in present:
            on_stage(f"no {part.name} in {data}, left out. {part.about}".rstrip())
    if not present:
        names = ", ".join(part.name for part in suite.data)
        raise DataError(
            f"{data} has none of {names}; fill it with `opqn data prepare NAME --source DOWNLOAD --out {data}/NAME`, "
            f"or `opqn data synthesize --out {data}/synthetic`"
        )
    if any(entry.label == COSFACE for entry in suite.entries):
        import_faiss()  # what is missing is said now, not after the training
    check_writable(out / RECORDS / "a record")
    try:
        with FileLock(out / _LOCK, timeout=0):
            return _run(_Plan(suite, data, out, "cpu" if on_cpu else device), present, jobs, cpus, on_stage)
    except Timeout:
        raise DataError(f"another process is filling {out}; wait for it, or choose another folder") from None


def _run(plan: _Plan, present: Sequence[SuiteData], jobs: int, cpus: int, on_stage: OnStage) -> list[dict[str, Any]]:
    with Workers(jobs, max(1, cpus // jobs)) as workers:
        on_stage("checking by content that no query is in a gallery or trained on")
        parts = [(part, seed) for seed in plan.suite.seeds for part in present]
        for part, seed in parts:
            plan.prepare(part, seed, on_stage)
        begun = {(part.name, seed): plan.start(part, seed) for part, seed in parts if part.start is not None}
        starts = _carry_out(workers, list(begun.values()), plan.out, "networks to start from", on_stage)
        trainings = [
            job
            for part, seed in parts
            if part.start is None or begun[part.name, seed].name not in starts.failures
            for job in plan.jobs(part, seed)
        ]
        done = _carry_out(workers, trainings, plan.out, "trainings", on_stage)
    failures = starts.failures | done.failures
    if failures:
        name, problem = next(iter(failures.items()))
        raise OpqnError(
            f"{len(failures)} of {len(begun) + len(trainings)} trainings failed, the first is {name}: {problem}. The "
            f"others are in {plan.out / RECORDS}; the same command tries again what failed"
        )
    return done.records


class _Plan:
    """The jobs of a suite."""

    def __init__(self, suite: Suite, data: Path, out: Path, device: str) -> None:
        self.suite, self.data, self.out = suite, data, out
        self.device = device
        self.hashes: dict[Path, dict[str, str]] = {}
        self.splits: dict[tuple[str, int], tuple[Split, tuple[Test, ...]]] = {}

    def prepare(self, part: SuiteData, seed: int, on_stage: OnStage) -> None:
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
            tests = tuple(test for where in part.tests if (test := self._load_test(part, where, on_stage)) is not None)
        if not tests:
            raise DataError(f"{self.data / part.name} has no split to test with; prepare it with `opqn data prepare`")
        trained = self._hashes(root, train.train)
        for test in tests:
            tested = self._hashes(test.root, (*test.split.gallery, *test.split.query))
            check_split(test.split, tested, trained.values())
            if test.protocol == "unseen" and test.root == root:
                check_strangers(test.split, train)
        self.splits[part.name, seed] = train, tests

    def _load_test(self, part: SuiteData, where: Where, on_stage: OnStage) -> Test | None:
        """Load a split to test with; of another data set, without the people that are trained on by name."""
        split = self._load_split(where.data, where.file)
        if split is None:
            on_stage(f"no {where.data}/splits/{where.file}.json in {self.data}; {part.name} is not tested with it")
            return None
        if where.data != part.name:
            people = self.data / part.name / PEOPLE_FILE
            if people.is_file():
                split = cross_set_split(split, read_names(people), name=split.name)
            else:
                on_stage(f"no {people}; people of {where.data} whom {part.name} knows cannot be left out")
        return Test(data_label(part.name, where.data), where.protocol, self.data / where.data / "images", split)

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
        settings = self.settings(part, seed, self.suite.lengths[-1], f"method={COSFACE}", *(part.start or ()))
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
        folder, fingerprint = "", None
        if part.start is not None:
            start = self._folder(START, part, seed) / "model"
            folder, fingerprint = str(start), json.loads((start / CONFIG_FILE).read_bytes())["fingerprint"]
        shapes = [self.settings(part, seed, length).model for length in self.suite.lengths]
        for entry in self.suite.entries:
            is_cosface = entry.label == COSFACE
            for bits in self.suite.lengths[-1:] if is_cosface else self.suite.bits:
                settings = self.settings(part, seed, bits, *entry.overrides)
                # A path is no TOML, whatever its characters.
                settings = settings.model_copy(update={"train": settings.train.model_copy(update={"start": folder})})
                yield Job(
                    part.name,
                    entry.label,
                    None if is_cosface else bits,
                    seed,
                    settings,
                    train_root(self.data, part),
                    train,
                    tests,
                    tuple(Shape(shape.num_books, shape.num_words) for shape in shapes) if is_cosface else (),
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


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of one training; none where there is no such file, or one of another version."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no record of a comparison: {error}; delete it, and it is measured anew") from error
    version, records = (document.get(key) if isinstance(document, dict) else None for key in ("version", "records"))
    if isinstance(version, int) and version != RECORD_VERSION:
        return []
    if version is None or not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path} is no record of a comparison; delete it, and it is measured anew")
    return records


class _Done(NamedTuple):
    """What came of some jobs."""

    records: list[dict[str, Any]]
    failures: dict[str, str]
    """Name of a job -> what went wrong."""


def _carry_out(workers: Workers, jobs: Sequence[Job], out: Path, what: str, on_stage: OnStage) -> _Done:
    """Run the jobs that have no record yet; return the records of all, in their order, and what failed."""
    paths = [out / RECORDS / f"{job.name}.json" for job in jobs]

    def records_of(number: int) -> list[dict[str, Any]]:
        return [record for record in _read_records(paths[number]) if record.get("key") == jobs[number].key]

    records = [records_of(number) for number in range(len(jobs))]
    todo = [i for i, job in enumerate(jobs) if not records[i] or (job.entry == START and not _has_model(job))]
    if jobs:
        on_stage(f"{what}: {len(jobs)}, {len(jobs) - len(todo)} of them done before")
    failures: dict[str, str] = {}
    began, began_at = time.monotonic(), time.time()
    left = {number: jobs[i] for number, i in enumerate(todo)}

    def tell_epochs() -> None:
        for job in left.values():
            epochs = epochs_since(job, began_at)
            if epochs:
                on_stage(f"{job.name}: {epochs} of {job.settings.train.epochs} epochs")

    for done, (number, problem) in enumerate(workers.run([(jobs[i], paths[i]) for i in todo], tell_epochs), start=1):
        job = left.pop(number)
        if problem:
            failures[job.name] = problem
            on_stage(f"{done}/{len(todo)} {job.name}: {problem}")
            continue
        found = records_of(todo[number])
        records[todo[number]] = found
        minutes = (time.monotonic() - began) / done * len(left) / 60
        on_stage(f"{done}/{len(todo)} {job.name}: {_figures(found[0])}; about {minutes:.0f} min left")
    return _Done([record for found in records for record in found], failures)


def _has_model(job: Job) -> bool:
    return is_of(job) and (job.folder / "model" / CONFIG_FILE).is_file()


def _figures(record: dict[str, Any]) -> str:
    maps = record["rows"][-1]["protocols"]
    found = ", ".join(f"{protocol} mAP {report['mean_average_precision']:.3f}" for protocol, report in maps.items())
    return f"{found} in {record['train_seconds']:.0f} s"
