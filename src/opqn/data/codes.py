"""The file of codes that ``opqn encode`` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from opqn._files import atomic_write_bytes
from opqn.errors import ConfigError, CorruptFileError, DataError

FORMAT: Final = "opqn-codes"
FORMAT_VERSION: Final = "1"


@dataclass(frozen=True, eq=False)
class CodeSet:
    """Codes of N images, and what they are codes of.

    Args:
        codes: (N, M) uint8, each below ``num_words``.
        num_words: K, a power of two in 2..256.
        paths: the image of each code.
        people: the person on each image, None where unknown.
        fingerprint: of the encoder that made the codes.
        root: folder that the paths start from, None if they stand alone.

    Raises:
        ConfigError: these do not go together.
    """

    codes: NDArray[np.uint8]
    num_words: int
    paths: tuple[str, ...]
    people: tuple[str | None, ...]
    fingerprint: str
    root: str | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        _check_codes(self.codes, self.num_words)
        _check_names(len(self.codes), self.paths, self.people, self.fingerprint, self.root)

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.codes)

    @property
    def num_books(self) -> int:
        """M, the number of codebooks."""
        num_books: int = self.codes.shape[1]
        return num_books

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all.

        It holds the codes as ``codes`` and the names as ``names``, UTF-8 JSON in a uint8 tensor: the header of such a
        file, where text usually goes, is limited to 100 MB, which a million paths reach.

        Raises:
            OpqnError: the disk is full or the place cannot be written; an old file is unchanged.
        """
        names = json.dumps({"root": self.root, "paths": self.paths, "people": self.people}).encode()
        metadata = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "num_words": str(self.num_words),
            "fingerprint": self.fingerprint,
        }
        tensors = {"codes": np.ascontiguousarray(self.codes), "names": np.frombuffer(names, np.uint8)}
        atomic_write_bytes(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a file of codes.

        Raises:
            DataError: no such file.
            CorruptFileError: not a file of codes, one of another version, or one that was damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"there is no file of codes at {path}; `opqn encode` makes one")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                _check_format(path, metadata, set(file.keys()))
                codes, raw_names = file.get_tensor("codes"), file.get_tensor("names")
                names = json.loads(raw_names.tobytes())
            return cls(
                codes,
                int(metadata["num_words"]),
                _as_tuple(names["paths"]),
                _as_tuple(names["people"]),
                metadata["fingerprint"],
                names["root"],
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptFileError(f"{path} is not a whole file of codes: {error}; encode the images again") from error


def _check_format(path: Path, metadata: dict[str, str], tensors: set[str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError("it has another format")
    if metadata.get("version") != FORMAT_VERSION:
        raise CorruptFileError(
            f"{path} has format version {metadata.get('version')} and this opqn reads {FORMAT_VERSION}; upgrade opqn, "
            "or encode the images again"
        )
    if tensors != {"codes", "names"}:
        raise ValueError(f"it holds {', '.join(sorted(tensors))} instead of codes and names")


def _as_tuple(values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list):
        raise TypeError(f"a list of names is of type {type(values).__name__}")
    return tuple(values)


def _check_codes(codes: NDArray[np.uint8], num_words: int) -> None:
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] < 1:
        raise ConfigError(f"codes must be (N, M) uint8, not {codes.shape} {codes.dtype}")
    if not 2 <= num_words <= 256 or num_words & (num_words - 1):
        raise ConfigError(f"num_words is {num_words}; it must be a power of two in 2..256")
    if codes.size and codes.max() >= num_words:
        raise ConfigError(f"a code is {codes.max()}, and there are only {num_words} codewords")


def _check_names(count: int, paths: Sequence[object], people: Sequence[object], fingerprint: str, root: object) -> None:
    if not count == len(paths) == len(people):
        raise ConfigError(f"{count} codes, {len(paths)} paths and {len(people)} people must be as many")
    if not all(isinstance(path, str) for path in paths):
        raise ConfigError("paths must be strings")
    if not all(person is None or isinstance(person, str) for person in people):
        raise ConfigError("people must be strings, or None")
    if not fingerprint:
        raise ConfigError("the fingerprint is empty; give the encoder's")
    if root is not None and not isinstance(root, str):
        raise ConfigError("root must be a string, or None")
