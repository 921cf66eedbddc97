"""One training and its records: what makes a job another one, going on after a stop, and what is measured."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import jobs_of, link_data, run_job, tiny_suite

from opqn import training
from opqn.baselines.hamming import HashHead
from opqn.baselines.methods import make_method
from opqn.baselines.model import BaselineModel
from opqn.bench.methods import jobs as module
from opqn.bench.methods.jobs import Shape, clean, measure, train_job
from opqn.bench.methods.workers import _HERE, _on_term, _Phase, _work
from opqn.data.splits import Split
from opqn.errors import OpqnError
from opqn.model import OPQN, ModelConfig
from opqn.training import TrainingInterruptedError

STEPS = 24  # of a training: 36 images, in batches of 6, four times


@pytest.fixture
def job(data, tmp_path):
    """A training of CSQ."""
    (made,) = jobs_of(tiny_suite("csq", bits=(24,)), data, tmp_path / "out")
    return made


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The job, in a folder of its own, and its records."""
    (made,) = jobs_of(tiny_suite("csq", bits=(24,)), data, tmp_path_factory.mktemp("finished"))
    return made, run_job(made)


def stop_after(steps):
    def on_progress(progress):
        if progress.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


def figures(records):
    """Records without what is another every time, for it is measured by a clock."""
    documents = json.loads(json.dumps(records))
    for record in documents:
        del record["train_seconds"]
        for row in record["rows"]:
            del row["encode_ms"], row["search_us"]
    return documents


# Which job it is


def changed_settings(job, section, **values):
    part = getattr(job.settings, section).model_copy(update=values)
    return replace(job, settings=job.settings.model_copy(update={section: part}))


def test_all_that_decides_a_result_makes_another_key(job):
    other = Split("other", "seen", 1, job.train.train[1:], job.train.train[1:], job.train.query)
    others = [
        changed_settings(job, "train", learning_rate=0.011),
        changed_settings(job, "train", epochs=3),
        changed_settings(job, "train", seed=1),
        changed_settings(job, "loss", margin=0.11),
        changed_settings(job, "augment", erase=0.1),
        changed_settings(job, "model", dropout=0.11),
        replace(job, settings=job.settings.model_copy(update={"method": "dcdh"})),
        replace(job, settings=job.settings.model_copy(update={"method_settings": {"scale": 2.0}})),
        replace(job, entry="csq, again"),
        replace(job, started_from="0" * 64),
        replace(job, train=other),
        replace(job, tests=job.tests[:1]),
        replace(job, tests=(job.tests[0], job.tests[1]._replace(split=other))),
        replace(job, tests=(job.tests[0]._replace(data="elsewhere"), job.tests[1])),
        replace(job, shapes=(Shape(8, 8),)),
    ]
    assert len({made.key for made in [job, *others]}) == 1 + len(others)


def test_where_and_on_what_it_runs_makes_no_other_key(job):
    for same in (
        changed_settings(job, "train", device="cuda"),
        changed_settings(job, "train", workers=7),
        changed_settings(job, "train", start="/elsewhere"),
        replace(job, folder=Path("/elsewhere")),
        replace(job, root=Path("/elsewhere")),
    ):
        assert same.key == job.key


# Going on


def test_a_training_that_was_stopped_goes_on_to_the_very_same_result(job, finished, monkeypatch):
    with pytest.raises(TrainingInterruptedError):
        train_job(job, stop_after(11))  # the stop is noticed a step later
    clock = iter((10.0, 16.0))
    monkeypatch.setattr(module.time, "process_time", lambda: next(clock))
    seen = []
    trained = train_job(job, lambda progress: seen.append(progress.step))
    monkeypatch.undo()
    assert seen == list(range(13, STEPS + 1))
    assert trained.seconds == 12.0  # half of the steps took 6
    assert figures(measure(job, trained)) == figures(finished[1])


def test_a_training_that_was_over_before_tells_how_long_it_took(job, monkeypatch):
    history = train_job(job).model.training_facts, (job.folder / "history.jsonl").read_text()
    monkeypatch.setattr(module.time, "process_time", lambda: 0.0)
    trained = train_job(job)
    assert trained.seconds == json.loads(history[1].splitlines()[-1])["seconds"]
    assert (job.folder / "history.jsonl").read_text() == history[1]


def test_what_a_training_with_other_settings_left_is_not_gone_on_from(job, finished):
    other = changed_settings(job, "train", epochs=5)
    with pytest.raises(TrainingInterruptedError):
        train_job(other, stop_after(2))
    assert training.has_checkpoint(job.folder / "checkpoint")
    assert figures(run_job(job)) == figures(finished[1])


def test_only_the_model_is_kept_of_a_training(job):
    run_job(job)
    clean(job)
    assert {path.name for path in job.folder.iterdir()} == {"history.jsonl", "job", "model", "settings.json"}
    clean(job)


@pytest.fixture
def quiet_worker():
    """The state of a worker, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield _HERE
    signal.signal(signal.SIGTERM, before)
    _HERE.is_told.clear()
    _HERE.is_idle.set()
    _HERE.phase = _Phase.IDLE


@pytest.fixture(scope="module")
def files_written(finished, tmp_path_factory):
    """How many times something is made to reach the disk from the begin of a job to its records."""
    job = replace(finished[0], folder=tmp_path_factory.mktemp("counted") / "run")
    calls, sync = [], os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (calls.append(descriptor), sync(descriptor)))
        _work(job, job.folder.parent / "r.json")
    return len(calls)


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 1])
def test_a_full_disk_leaves_no_half_record_and_the_training_goes_on(
    share, job, finished, files_written, full_disk_after, tmp_path, monkeypatch, quiet_worker
):
    path = tmp_path / "records/r.json"
    full_disk_after(round(share * (files_written - 2)))  # the last are of the records and of their folder
    with pytest.raises(OpqnError, match="the disk is full"):
        _work(job, path)
    assert quiet_worker.is_idle.is_set()
    assert not path.exists()
    monkeypatch.undo()
    _work(job, path)
    assert figures(json.loads(path.read_bytes())["records"]) == figures(finished[1])


def test_a_worker_that_was_told_to_stop_begins_nothing(job, tmp_path, quiet_worker):
    quiet_worker.is_told.set()
    with pytest.raises(TrainingInterruptedError):
        _work(job, tmp_path / "r.json")
    assert not job.folder.exists()
    assert quiet_worker.is_idle.is_set()


def test_a_worker_that_is_told_while_it_loads_images_stops_at_the_first_step(job, tmp_path, quiet_worker, monkeypatch):
    load = training._load_data

    def told_meanwhile(*arguments):
        quiet_worker.is_told.set()
        return load(*arguments)

    monkeypatch.setattr(training, "_load_data", told_meanwhile)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with pytest.raises(TrainingInterruptedError):
        _work(job, tmp_path / "r.json")
    progress = json.loads((job.folder / "checkpoint/state.json").read_text())["progress"]
    assert 1 <= progress["step"] <= 2
    assert not (tmp_path / "r.json").exists()


def test_a_second_signal_does_not_keep_a_training_from_saving(job, tmp_path, quiet_worker, monkeypatch):
    add_up = training._Run._add_up

    def signalled(run, pending):
        if run.state.step == 11:
            quiet_worker.is_told.set()  # by the parent, after somebody signalled to all
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return add_up(run, pending)

    signal.signal(signal.SIGTERM, _on_term)
    monkeypatch.setattr(training._Run, "_add_up", signalled)
    with pytest.raises(TrainingInterruptedError):
        _work(job, tmp_path / "r.json")
    assert json.loads((job.folder / "checkpoint/state.json").read_text())["progress"]["step"] == 11


def test_a_worker_that_is_told_while_it_measures_breaks_off_and_keeps_the_training(
    job, finished, tmp_path, quiet_worker, monkeypatch
):
    evaluate = module.evaluate

    def told_meanwhile(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    signal.signal(signal.SIGTERM, _on_term)
    monkeypatch.setattr(module, "evaluate", told_meanwhile)
    with pytest.raises(TrainingInterruptedError):
        _work(job, tmp_path / "r.json")
    assert quiet_worker.is_idle.is_set()
    assert not (tmp_path / "r.json").exists()
    monkeypatch.undo()
    os.kill(os.getpid(), signal.SIGTERM)  # one that does nothing is not disturbed
    history = (job.folder / "history.jsonl").read_bytes()
    _work(job, tmp_path / "r.json")
    assert figures(json.loads((tmp_path / "r.json").read_bytes())["records"]) == figures(finished[1])
    assert (job.folder / "history.jsonl").read_bytes() == history  # its times are those of the first


# Measuring


def test_a_record_says_what_was_done(job, finished):
    made, (record,) = finished
    model = BaselineModel.from_pretrained(made.folder / "model")
    assert record["key"] == made.key == job.key
    assert (record["data"], record["entry"], record["bits"], record["seed"]) == ("drawn", "csq", 24, 0)
    assert record["settings"]["method"] == "csq"
    assert "start" not in record["settings"]["train"]
    assert record["started_from"] is None
    assert (record["device"], record["skipped"]) == ("cpu", 0)
    assert record["train_seconds"] > 0
    assert model.training_facts["split_hash"] == made.train.hash
    for test in made.tests:
        assert record["splits"][test.protocol] == {
            "hash": test.split.hash,
            "num_train": 36,
            "num_gallery": 36 if test.protocol == "seen" else 12,
            "num_queries": 12 if test.protocol == "seen" else 4,
            "num_people": 6 if test.protocol == "seen" else 2,
        }
    (row,) = record["rows"]
    assert (row["name"], row["bits"], row["bytes"], row["shape"], row["is_binary"]) == ("csq", 24, 3, [3, 256], True)
    assert row["encode_ms"] > 0
    assert row["search_us"] > 0


def test_an_image_that_cannot_be_read_counts_once(drawn_faces, tmp_path):
    images = shutil.copytree(drawn_faces[0], tmp_path / "faces")
    (made,) = jobs_of(tiny_suite("csq", bits=(24,)), link_data(tmp_path / "data", images), tmp_path / "out")
    seen = next(test.split for test in made.tests if test.protocol == "seen")
    for path in (seen.gallery[0], seen.gallery[9], seen.query[0]):
        (images / path).write_bytes(b"broken " + path.encode())
    (record,) = run_job(made)
    assert record["skipped"] == 3


@pytest.mark.parametrize(("method", "is_binary"), [(None, False), ("csq", True), ("dpq", False), ("cosface", True)])
def test_codes_of_bits_are_told_from_those_of_books_also_where_their_shape_is_the_same(method, is_binary, job):
    config = ModelConfig(backbone="resnet20-32-small", num_books=2, num_words=256, book_dim=256)  # as 16 bits in bytes
    model = OPQN(config) if method is None else BaselineModel(config, make_method(method, {}))
    (codes,) = module._ways(model, replace(job, entry="start" if method == "cosface" else "any"))
    assert (codes.num_books, codes.num_words, codes.num_bits) == (2, 256, 16)
    assert codes.is_binary == is_binary


def test_encoding_is_timed_with_one_thread(finished, monkeypatch):
    made, _ = finished
    model = BaselineModel.from_pretrained(made.folder / "model")
    (codes,) = module._ways(model, made)
    seen, forward = set(), HashHead.forward

    def spy(head, features):
        seen.add(torch.get_num_threads())
        return forward(head, features)

    monkeypatch.setattr(HashHead, "forward", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        images = module._load(made.root, made.train.train, model.config.resize)
        assert module._encode_ms(codes, model, images) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}
