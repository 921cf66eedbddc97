"""Whole comparisons, in miniature: records that the tables take, figures that can be checked, and going on."""

import json
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from filelock import FileLock
from tiny import DRAW, DRAWN, ENTRIES, STARTED, jobs_of, link_data, plan_of, read_records, tiny_suite

from opqn import training
from opqn.baselines.binary import BinaryQuantizer
from opqn.baselines.model import BaselineModel, load_model
from opqn.baselines.product_quantization import ProductQuantizer
from opqn.bench.methods import run_suite, summary, tables, workers, write_page
from opqn.bench.methods import runner as module
from opqn.bench.methods.jobs import epochs_since
from opqn.bench.methods.suites import Entry, narrowed
from opqn.config import load_settings
from opqn.data.dataset import FaceDataset
from opqn.data.splits import make_splits, person_of
from opqn.errors import ConfigError, DataError, OpqnError
from opqn.evaluation import evaluate, evaluate_features
from opqn.validation import dataset_features

SUITE = tiny_suite("opqn", "opqn-plus", "cosface")
SHAPES = {24: (8, 8), 36: (12, 8)}
KINDS = ("PQ", "OPQ", "ITQ", "LSH")


class Ran(NamedTuple):
    """A comparison that was run."""

    records: list
    data: Path
    out: Path
    said: list


class InThisProcess:
    """A pool without processes, which take seconds to start; test_workers.py and test_cli.py have real ones."""

    def __init__(self, *_):
        pass

    def submit(self, work, *arguments):
        future = Future()
        try:
            future.set_result(work(*arguments))
        except (OpqnError, RuntimeError) as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_):
        pass


def run(suite, data, out, said=None):
    said = [] if said is None else said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "ProcessPoolExecutor", InThisProcess)
        return Ran(run_suite(suite, data, out, device="cpu", on_stage=said.append), data, out, said)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return run(SUITE, data, tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture
def own(whole, tmp_path):
    """The same, in a folder that may be changed."""
    return whole._replace(out=Path(shutil.copytree(whole.out, tmp_path / "out")))


def state_of(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def qualities(records):
    return {
        (record["data"], record["seed"], row["name"], row["bits"], protocol): report["mean_average_precision"]
        for record in records
        for row in record["rows"]
        for protocol, report in row["protocols"].items()
    }


# What comes out


def test_there_is_a_row_for_every_method_and_length(whole):
    expected = ["opqn", "opqn-plus", *(f"cosface + {kind}" for kind in KINDS)]
    rows = [(row["name"], row["bits"]) for record in whole.records for row in record["rows"]]
    assert sorted(rows) == sorted((name, bits) for name in expected for bits in SUITE.bits)
    for record in whole.records:
        assert record["splits"].keys() == record["features"].keys() == {"seen", "unseen"}
        for row in record["rows"]:
            assert row["bytes"] == -(-row["bits"] // 8)
            assert row["protocols"].keys() == {"seen", "unseen"}
    assert len({record["splits"]["unseen"]["hash"] for record in whole.records}) == 1


def test_tables_and_page_take_the_records(whole, tmp_path):
    text = tables(whole.records, SUITE, "opqn bench methods")
    assert all(name in text for name in ("opqn-plus", "cosface + ITQ", "cosface, uncompressed"))
    found = summary(whole.records, SUITE)
    assert (found["complete_cells"], found["incomplete_cells"]) == (4, 0)
    page = write_page(whole.records, SUITE, "opqn bench methods", tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"results.md", "results.json", "drawn-unseen-36.svg", page.name}


def independent(whole, job, protocol, encode, look_up):
    """The mAP of the whole way from files to codes, by another one than the benchmark's."""
    split = next(test.split for test in job.tests if test.protocol == protocol)
    root = whole.data / "drawn/images"
    gallery, query = ([root / path for path in paths] for paths in (split.gallery, split.query))
    labels = [np.array([person_of(path) for path in paths]) for paths in (split.gallery, split.query)]
    return evaluate(encode(gallery), labels[0], look_up(query), labels[1]).mean_average_precision


@pytest.mark.parametrize("bits", SUITE.bits)
@pytest.mark.parametrize("label", ["opqn", "opqn-plus"])
def test_the_map_of_a_record_is_that_of_the_model_on_the_disk(label, bits, whole, data):
    (job,) = (job for job in jobs_of(SUITE, data, whole.out) if (job.entry, job.bits) == (label, bits))
    model = load_model(job.folder / "model")
    assert (model.config.num_bits, model.config.refit) == (bits, label == "opqn-plus")
    for protocol in ("seen", "unseen"):
        found = independent(whole, job, protocol, model.encode, model.lookup_tables)
        assert qualities(whole.records)["drawn", 0, label, bits, protocol] == pytest.approx(found)


@pytest.mark.parametrize("bits", SUITE.bits)
def test_the_map_of_compressed_features_is_that_of_a_quantizer_fitted_to_the_training_images(bits, whole, data):
    (job,) = (job for job in jobs_of(SUITE, data, whole.out) if job.entry == "cosface")
    model = load_model(job.folder / "model")

    def features_of(images):
        dataset = FaceDataset("/", list(map(str, images)), [0] * len(images), model.config.resize)
        return dataset_features(model, dataset)[0].numpy()  # k-means goes another way where a last bit differs

    features = features_of([whole.data / "drawn/images" / path for path in job.train.train])
    for kind, quantizer in (
        ("PQ", ProductQuantizer(*SHAPES[bits], seed=0)),
        ("OPQ", ProductQuantizer(*SHAPES[bits], rotation=True, seed=0)),
        ("ITQ", BinaryQuantizer(bits, "itq", seed=0)),
        ("LSH", BinaryQuantizer(bits, "lsh", seed=0)),
    ):
        quantizer.fit(features)
        for protocol in ("seen", "unseen"):
            found = independent(
                whole,
                job,
                protocol,
                lambda images, quantizer=quantizer: quantizer.encode(features_of(images)),
                lambda images, quantizer=quantizer: quantizer.lookup_tables(features_of(images)),
            )
            assert qualities(whole.records)["drawn", 0, f"cosface + {kind}", bits, protocol] == pytest.approx(found)


def test_the_map_of_features_is_that_of_the_model_on_the_disk(whole, data):
    for job in jobs_of(SUITE, data, whole.out):
        model = load_model(job.folder / "model")
        (record,) = (r for r in whole.records if (r["entry"], r["bits"]) == (job.entry, job.bits))
        for test in job.tests:
            parts = [
                model.features([test.root / path for path in paths]).numpy()
                for paths in (test.split.gallery, test.split.query)
            ]
            labels = [np.array(list(map(person_of, paths))) for paths in (test.split.gallery, test.split.query)]
            found = evaluate_features(parts[0], labels[0], parts[1], labels[1]).mean_average_precision
            assert record["features"][test.protocol] == pytest.approx(found)


def weights_before_training(job, folder):
    run = training._Run(job.settings, job.root, job.train, folder, resume=False)
    return {name: tensor.clone() for name, tensor in run.model.backbone.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_method_starts_from_the_same_random_weights_of_its_seed(data, tmp_path):
    suite = tiny_suite(*ENTRIES, bits=(24,), seeds=(0, 1))
    jobs = jobs_of(suite, data, tmp_path / "out")
    first = {}
    for number, job in enumerate(jobs):
        weights = weights_before_training(job, tmp_path / str(number))
        assert same(first.setdefault(job.seed, weights), weights), job.name
    assert len(jobs) == 2 * len(ENTRIES)
    assert not same(first[0], first[1])


# A network to start from


@pytest.fixture(scope="module")
def started(data, tmp_path_factory):
    return run(tiny_suite("opqn", "csq", part=STARTED, bits=(24,)), data, tmp_path_factory.mktemp("started") / "out")


def test_every_method_starts_from_the_network_that_was_trained_for_it(started, data, tmp_path):
    network = BaselineModel.from_pretrained(started.out / "runs/drawn/start-seed0/model")
    assert [record["started_from"] for record in started.records] == [network.fingerprint] * 2
    assert network.training_facts["epochs"] == 1
    suite = tiny_suite(*ENTRIES, part=STARTED, bits=(24,))
    for number, job in enumerate(jobs_of(suite, data, started.out)):
        assert job.started_from == network.fingerprint
        assert same(weights_before_training(job, tmp_path / str(number)), network.backbone.state_dict())


def test_the_network_to_start_from_is_in_no_table_but_its_record_is_kept(started):
    assert [record["entry"] for record in started.records] == ["opqn", "csq"]
    assert sorted(record["entry"] for record in read_records(started.out)) == ["csq", "opqn", "start"]


def test_a_part_of_the_lengths_takes_what_the_whole_left(started):
    suite = tiny_suite("opqn", "csq", part=STARTED, bits=(24, 48))
    jobs = jobs_of(suite, started.data, started.out)
    part = jobs_of(narrowed(suite, bits=[24]), started.data, started.out)
    assert {job.key for job in part} == {job.key for job in jobs if job.bits == 24}
    cosface = replace(suite, entries=(ENTRIES["cosface"],))
    (one,), (other,) = (jobs_of(each, started.data, started.out) for each in (cosface, narrowed(cosface, bits=[24])))
    assert one.key == other.key
    plans = [plan_of(each, started.data, started.out) for each in (suite, narrowed(suite, bits=[24]))]
    assert plans[0].start(STARTED, 0).key == plans[1].start(STARTED, 0).key


def test_a_network_to_start_from_that_was_lost_is_trained_anew_and_the_records_stand(started, tmp_path):
    out = Path(shutil.copytree(started.out, tmp_path / "out"))
    before = state_of(out / "records/drawn")
    fingerprint = load_model(out / "runs/drawn/start-seed0/model").fingerprint
    shutil.rmtree(out / "runs/drawn/start-seed0/model")
    again = run(tiny_suite("opqn", "csq", part=STARTED, bits=(24,)), started.data, out)
    assert "networks to start from: 1, 0 of them done before" in again.said
    assert "trainings: 2, 2 of them done before" in again.said
    assert load_model(out / "runs/drawn/start-seed0/model").fingerprint == fingerprint
    after = state_of(out / "records/drawn")
    assert {name for name in after if after[name] != before[name]} == {Path("start-seed0.json")}


# Going on


def test_a_second_call_trains_nothing(own):
    before = state_of(own.out)
    again = run(SUITE, own.data, own.out)
    assert again.records == own.records
    assert state_of(own.out) == before
    assert again.said[-1] == "trainings: 5, 5 of them done before"


def test_a_record_that_was_deleted_is_measured_anew_with_the_same_result(own):
    record = own.out / "records/drawn/opqn-plus-24-seed0.json"
    before = state_of(own.out / "records")
    record.unlink()
    again = run(SUITE, own.data, own.out)
    assert qualities(again.records) == qualities(own.records)
    after = state_of(own.out / "records")
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {Path("drawn/opqn-plus-24-seed0.json")}
    assert again.said[-1].startswith("1/1 drawn/opqn-plus-24-seed0: unseen mAP ")


def test_a_record_of_other_settings_or_another_split_is_not_used(own, data):
    jobs = {job.entry: job for job in jobs_of(narrowed(SUITE, bits=[24]), data, own.out)}
    longer = replace(DRAWN, overrides=(*DRAWN.overrides, "train.epochs=3"))
    other = replace(DRAWN, draw=DRAW._replace(people_seed=1))
    for part in (longer, other):
        (job,) = jobs_of(tiny_suite("opqn", part=part, bits=(24,)), data, own.out)
        assert job.name == jobs["opqn"].name
        assert job.key != jobs["opqn"].key
    before = qualities(own.records)
    again = run(tiny_suite("opqn", part=other, bits=(24,)), data, own.out)
    assert "trainings: 1, 0 of them done before" in again.said
    assert again.records[0]["key"] == job.key
    assert again.records[0]["splits"] != own.records[0]["splits"]
    assert qualities(again.records).keys() <= before.keys()
    assert qualities(read_records(own.out)) == before | qualities(again.records)


NO_RECORDS = (b"", b"{", b"\xff\xfe", b"[]", b"3", b"{}", b'{"version":1}', b'{"version":1,"records":[1]}', b"[" * 9999)


@pytest.mark.parametrize("content", NO_RECORDS)
def test_a_damaged_record_is_named_and_what_to_do_is_said(content, own):
    path = own.out / "records/drawn/opqn-24-seed0.json"
    path.write_bytes(content)
    before = state_of(own.out)
    with pytest.raises(DataError, match=f"{re.escape(str(path))} is no record .*; delete it, and it is measured anew"):
        run(SUITE, own.data, own.out)
    assert state_of(own.out) == before


def test_a_record_of_another_version_is_not_used(own):
    path = own.out / "records/drawn/opqn-24-seed0.json"
    path.write_text(json.dumps({"version": 99, "what": "a later one"}))
    assert len(read_records(own.out)) == 4


def test_what_fails_is_told_at_the_end_and_the_others_are_kept(own):
    suite = replace(
        SUITE,
        entries=(
            Entry("impossible", ("train.batch_size=1000",)),
            Entry("astray", ("train.learning_rate=1e30",)),
            *SUITE.entries,
            Entry("good", ("train.epochs=1",)),
        ),
        bits=(24,),
        whole_bits=SUITE.bits,
    )
    before = state_of(own.out / "records")
    said = []
    with pytest.raises(OpqnError, match=r"2 of 6 trainings failed, the first is drawn/.*same command tries again") as e:
        run(suite, own.data, own.out, said)
    assert str(own.out / "records") in str(e.value)
    assert "train.batch_size is 1000" in str(e.value) or "the training went astray" in str(e.value)
    assert any("drawn/impossible-24-seed0: train.batch_size is 1000" in line for line in said)
    assert any("drawn/astray-24-seed0: the training went astray" in line for line in said)
    after = state_of(own.out / "records")
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {Path("drawn/good-24-seed0.json")}
    again = run(replace(suite, entries=suite.entries[2:]), own.data, own.out)
    assert again.said[-1] == "trainings: 4, 4 of them done before"


def test_how_far_a_training_is_that_goes_on_is_told(data, tmp_path, monkeypatch):
    class InAThread(InThisProcess):
        def __init__(self, *_):
            self.pool = ThreadPoolExecutor(1)

        def submit(self, work, *arguments):
            return self.pool.submit(work, *arguments)

        def shutdown(self, **_):
            self.pool.shutdown()

    monkeypatch.setattr(workers, "ProcessPoolExecutor", InAThread)
    monkeypatch.setattr(workers, "WAIT_SECONDS", 0.01)
    said = []
    run_suite(tiny_suite("opqn", "csq", bits=(24,)), data, tmp_path, jobs=1, device="cpu", on_stage=said.append)
    for name in ("opqn", "csq"):
        told = [re.fullmatch(rf"drawn/{name}-24-seed0: (\d) of 4 epochs", line) for line in said]
        epochs = [int(match[1]) for match in told if match]
        assert epochs
        assert epochs == sorted(epochs)


def test_epochs_of_an_earlier_run_are_not_told(data, tmp_path):
    (job,) = plan_of(tiny_suite("opqn", bits=(24,)), data, tmp_path).jobs(DRAWN, 0)
    assert epochs_since(job, 0) == 0
    job.folder.mkdir(parents=True)
    (job.folder / "history.jsonl").write_text("{}\n{}\n")
    os.utime(job.folder / "history.jsonl", (1000, 1000))
    assert epochs_since(job, 1000) == 2
    assert epochs_since(job, 1001) == 0


def test_a_gpu_without_room_for_a_training_fails_that_training_alone(own, monkeypatch):
    work = workers._work

    def full_at_first(job, path):
        if job.entry == "first":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate ...")
        work(job, path)

    monkeypatch.setattr(workers, "_work", full_at_first)
    entries = tuple(Entry(label, ("method=csq",)) for label in ("first", "second"))
    with pytest.raises(
        OpqnError, match=r"1 of 2 .* is drawn/first-24-seed0: OutOfMemoryError: CUDA out of memory\.\. "
    ):
        run(replace(SUITE, entries=entries, bits=(24,)), own.data, own.out)
    assert (own.out / "records/drawn/second-24-seed0.json").is_file()


def test_a_network_to_start_from_that_fails_leaves_the_other_data_sets(drawn_faces, tmp_path):
    sets = link_data(tmp_path / "data", drawn_faces[0])
    (sets / "other").mkdir()
    (sets / "other/images").symlink_to(drawn_faces[0])
    bad = replace(STARTED, start=("train.batch_size=1000",))
    suite = tiny_suite("csq", part=bad, bits=(24,))
    suite = replace(suite, data=(bad, replace(DRAWN, name="other")))
    with pytest.raises(OpqnError, match=r"1 of 2 trainings failed, the first is drawn/start-seed0: train\.batch_size"):
        run(suite, sets, tmp_path / "out")
    assert [record["data"] for record in read_records(tmp_path / "out")] == ["other"]


# What stops a comparison before it begins


def never(*_):
    raise AssertionError("something was trained")


@pytest.fixture
def idle(monkeypatch):
    monkeypatch.setattr(module.Workers, "run", never)


@pytest.mark.usefixtures("idle")
def test_missing_data_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"has none of drawn; fill it with `opqn data prepare NAME --source DOWNLOAD"):
        run_suite(SUITE, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_is_not_there_is_left_out_and_named(own):
    missing = replace(DRAWN, name="absent", about="Ask its makers.")
    again = run(replace(SUITE, data=(missing, DRAWN)), own.data, own.out)
    assert again.records == own.records
    assert again.said[0] == f"no absent in {own.data}, left out. Ask its makers."


def test_a_copy_of_a_query_among_the_images_is_no_query(drawn_faces, tmp_path):
    images = Path(shutil.copytree(drawn_faces[0], tmp_path / "faces"))
    for number in range(8):
        shutil.copy(images / f"p{number}/3.png", images / f"p{(number + 1) % 8}/copy.png")
    plan = plan_of(SUITE, link_data(tmp_path / "data", images), tmp_path / "out")
    train, tests = plan.splits["drawn", 0]
    paths = {*train.train, *(path for test in tests for path in (*test.split.gallery, *test.split.query))}
    contents = [(images / path).read_bytes() for path in paths]
    assert len(contents) >= 60
    assert len(set(contents)) == len(contents)


@pytest.mark.usefixtures("idle")
def test_a_split_file_whose_query_is_trained_on_under_another_name_is_refused(drawn_faces, tmp_path):
    images = Path(shutil.copytree(drawn_faces[0], tmp_path / "faces"))
    data = link_data(tmp_path / "data", images)
    split = make_splits(module.scan_folder(images), name="d", unseen_people=0.25).seen
    split.save(data / "drawn/splits/seen.json")
    part = replace(DRAWN, draw=None, tests=(module.Where("drawn", "seen", "seen"),))
    plan_of(tiny_suite("csq", part=part), data, tmp_path / "out")
    shutil.copy(images / split.query[1], images / split.train[-1])
    with pytest.raises(DataError, match=f"1 queries have the same bytes as images .*: {split.query[1]}; prepare"):
        run_suite(tiny_suite("csq", part=part), data, tmp_path / "out")


@pytest.mark.usefixtures("idle")
def test_a_device_that_is_not_there_is_refused(data, tmp_path):
    for device in ("cuda:99", "gpu", "mps" if not torch.backends.mps.is_available() else "xpu"):
        with pytest.raises(ConfigError, match=f"the device '{device}' is not to be had here"):
            run_suite(SUITE, data, tmp_path / "out", device=device)


@pytest.mark.usefixtures("idle")
def test_a_place_that_cannot_be_written_is_found_before_anything_is_trained(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OpqnError, match=f"cannot write {re.escape(str(tmp_path))}/file/out/records/"):
        run_suite(SUITE, data, tmp_path / "file/out", device="cpu")


@pytest.mark.usefixtures("idle")
def test_two_comparisons_do_not_fill_one_folder(data, tmp_path):
    (tmp_path / "out").mkdir()
    busy = pytest.raises(DataError, match=r"another process is filling .*/out; wait for it, or choose another folder")
    with FileLock(tmp_path / "out/.opqn-bench-methods.lock"), busy:
        run_suite(SUITE, data, tmp_path / "out", device="cpu")


def test_any_folder_can_hold_the_network_to_start_from(data, tmp_path):
    out = tmp_path / 'a "quoted" \\ folder 😀 = x'
    job = plan_of(tiny_suite("csq", part=STARTED, bits=(24,)), data, out).start(STARTED, 0)
    BaselineModel(job.settings.model, training.method_of(job.settings)).save_pretrained(job.folder / "model")
    (made,) = jobs_of(tiny_suite("csq", part=STARTED, bits=(24,)), data, out)
    assert made.settings.train.start == str(out / "runs/drawn/start-seed0/model")


def test_settings_of_a_job_are_those_of_its_suite_data_set_and_entry(data, tmp_path):
    suite = replace(tiny_suite("csq", bits=(24,), seeds=(5,)), overrides=("train.momentum=0.8", "train.epochs=9"))
    (job,) = jobs_of(suite, data, tmp_path)
    fixed = ["train.momentum=0.8", "train.seed=5", "train.validation=none", "train.device=cpu", "method=csq"]
    assert job.settings == load_settings("orl", num_bits=24, overrides=[*DRAWN.overrides, *fixed])
