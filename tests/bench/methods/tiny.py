"""Comparisons of seconds: the drawn faces, networks that hardly learn, and a program that runs one as the verb does."""

import sys
from dataclasses import replace
from pathlib import Path

from opqn.bench.methods.jobs import measure, train_job
from opqn.bench.methods.runner import RECORDS, _Plan, _read_records
from opqn.bench.methods.suites import Draw, Entry, Suite, SuiteData

SETTINGS = (
    "model.backbone=resnet20-32-small",
    "model.flip_average=false",
    "model.book_dim=8",
    "train.batch_size=6",  # many short steps, so that the statistics of batch normalisation settle
    "train.epochs=4",
    "train.warmup_epochs=0.5",
)
DRAW = Draw(images_per_person=8, min_images=2, unseen_people=0.25, queries_per_person=0.25)
DRAWN = SuiteData("drawn", DRAW, preset="orl", overrides=SETTINGS)
STARTED = SuiteData(
    "drawn", DRAW, overrides=("train.batch_size=6", "train.epochs=2"), start=("train.epochs=1", "loss.margin=0.1")
)
ENTRIES = {
    "opqn": Entry("opqn"),
    "opqn-plus": Entry("opqn-plus", ("model.refit=true",)),
    **{name: Entry(name, (f"method={name}",)) for name in ("csq", "dpq", "dcdh", "cosface")},
}


def run_job(job):
    return measure(job, train_job(job))


def read_records(out):
    """Return the records that a comparison left in ``out``, by file name."""
    return [record for path in sorted((out / RECORDS).rglob("*.json")) for record in _read_records(path)]


def tiny_suite(*labels, part=DRAWN, bits=(24, 36), seeds=(0,), **changes):
    entries = tuple(ENTRIES[label] for label in labels)
    return replace(Suite("tiny", "for tests", (part,), entries, bits, seeds), **changes)


def link_data(folder, images):
    """Make a folder of data sets whose ``drawn`` is these images."""
    (folder / "drawn").mkdir(parents=True)
    (folder / "drawn/images").symlink_to(images)
    return folder


def plan_of(suite, data, out):
    """The jobs of a suite, with its splits made."""
    plan = _Plan(suite, data, out, "cpu")
    for part in suite.data:
        for seed in suite.seeds:
            plan.prepare(part, seed, lambda _stage: None)
    return plan


def jobs_of(suite, data, out):
    plan = plan_of(suite, data, out)
    return [job for part in suite.data for seed in suite.seeds for job in plan.jobs(part, seed)]


PROGRAM = """
import sys
sys.path.insert(0, {here!r})
from tiny import tiny_suite
from opqn.bench.methods import suites
from opqn.bench.methods.suites import Draw, SuiteData
from opqn.cli import main
if __name__ == "__main__":
    suites.SUITES = {{"tiny": tiny_suite(*{labels!r}, part={part!r}, bits={bits!r})}}
    main(["bench", "methods", "--suite", "tiny", *sys.argv[1:]])
"""


def command_of(program, suite, data, out):
    """Write a program that runs ``opqn bench methods`` with a tiny suite; return how to start it."""
    labels = tuple(entry.label for entry in suite.entries)
    here = str(Path(__file__).parent)
    program.write_text(PROGRAM.format(here=here, labels=labels, bits=suite.bits, part=suite.data[0]))
    options = ("--data", data, "--out", out, "--device", "cpu", "--json")
    return [sys.executable, *map(str, (program, *options))]
