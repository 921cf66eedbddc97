"""Data of a comparison: what is fetched, what is prepared, and what is left alone."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from opqn.bench.methods.fetch import Source, fetch, parse_source
from opqn.bench.methods.suites import SUITES, SuiteData, narrowed
from opqn.data import synthetic
from opqn.data.splits import Split
from opqn.errors import ConfigError, DataError

DIGITS = narrowed(SUITES["smoke"], data=["digits"])


@pytest.fixture
def calls(monkeypatch):
    """What was prepared and drawn, and nothing was."""
    made = []
    module = importlib.import_module("opqn.bench.methods.fetch")  # the package has a function of that name
    monkeypatch.setattr(module, "prepare", lambda name, source, out: made.append((name, source, out)))
    monkeypatch.setattr(synthetic, "synthesize", lambda out, *_: made.append(("synthetic", out)))
    return made


def state_of(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_source_is_a_name_and_a_path():
    assert parse_source("imfdb=/a/b.zip") == Source("imfdb", Path("/a/b.zip"))
    assert parse_source("lfw=a=b") == Source("lfw", Path("a=b"))
    assert parse_source("lfw=~/x").path == Path.home() / "x"


@pytest.mark.parametrize("text", ["", "imfdb", "imfdb=", "=a.zip", "="])
def test_what_is_no_source_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=f"--source '{text}' is not of the form NAME=PATH, such as cifar-10="):
        parse_source(text)


def test_a_source_that_nothing_is_made_of_is_refused(calls, tmp_path):
    with pytest.raises(ConfigError, match="suite 'smoke' has no data set 'lfw'; it has orl, "):
        fetch(SUITES["smoke"], tmp_path, [parse_source("lfw=x")])
    for suite, name in (("faces", "synthetic"), ("smoke", "digits")):
        with pytest.raises(
            ConfigError, match=f"{name} is drawn or comes with an installed package; leave its --source"
        ):
            fetch(SUITES[suite], tmp_path, [parse_source(f"{name}=x")])
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_digits_are_prepared_once(tmp_path):
    said = []
    fetch(DIGITS, tmp_path, on_stage=said.append)
    assert said == [f"preparing digits: {tmp_path / 'digits'}"]
    Split.load(tmp_path / "digits/splits/seen.json", tmp_path / "digits/images")
    before = state_of(tmp_path)
    fetch(DIGITS, tmp_path, on_stage=said.append)
    assert len(said) == 1
    assert state_of(tmp_path) == before
    # As a kill leaves it: an image is missing, and what is written last.
    (tmp_path / "digits/SOURCE.md").unlink()
    image = next((tmp_path / "digits/images").rglob("*.png"))
    image.unlink()
    fetch(DIGITS, tmp_path)
    assert {path: content for path, (content, _) in state_of(tmp_path).items()} == {
        path: content for path, (content, _) in before.items()
    }


def test_only_what_can_be_had_is_fetched(calls, tmp_path):
    (tmp_path / "imfdb").mkdir()
    (tmp_path / "imfdb/SOURCE.md").touch()
    fetch(SUITES["faces"], tmp_path, [parse_source("lfw=l.tgz"), parse_source("imfdb=i.zip")])
    assert calls == [("synthetic", tmp_path / "synthetic"), ("lfw", [Path("l.tgz")], tmp_path / "lfw")]


def test_archives_of_one_data_set_are_prepared_together(calls, tmp_path):
    parts = [parse_source(text) for text in ("vggface2=train.tar.gz", "cfw-60k=c", "vggface2=test.tar.gz")]
    fetch(SUITES["paper"], tmp_path, parts)
    assert calls == [
        ("cfw-60k", [Path("c")], tmp_path / "cfw-60k"),
        ("vggface2", [Path("train.tar.gz"), Path("test.tar.gz")], tmp_path / "vggface2"),
    ]


def test_a_set_that_is_only_tested_on_can_have_a_source(calls, tmp_path):
    fetch(narrowed(SUITES["paper"], data=["vggface2"]), tmp_path, [parse_source("facescrub=f")])
    assert calls == [("facescrub", [Path("f")], tmp_path / "facescrub")]


def test_a_data_set_without_a_recipe_is_the_users_own(calls, tmp_path):
    fetch(replace(SUITES["smoke"], data=(SuiteData("mine"),)), tmp_path)
    assert calls == []


def test_a_download_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.zip is missing; give the folder or the archives"):
        fetch(narrowed(SUITES["faces"], data=["imfdb"]), tmp_path, [Source("imfdb", tmp_path / "nowhere.zip")])
