"""The folder of a quantizer: written whole or not at all, read as if an enemy had made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field

from opqn._files import atomic_folder, recover_folder, write_synced
from opqn._settings import Settings
from opqn.codebooks import check_code_shape
from opqn.errors import ConfigError, CorruptFileError

FORMAT: Final = "opqn-quantizer"
FORMAT_VERSION: Final = 1
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
CARD_FILE: Final = "README.md"
WEIGHTS: Final = ("mean", "axes", "projection")
MAX_DIM: Final = 8192  # a bound on what a hostile configuration can make us allocate
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_HEADER_BYTES: Final = 1 << 16  # of the weights, beside the numbers themselves

CARD: Final = """---
library_name: opqn
tags: [face-retrieval, product-quantization, opqn]
---
# OPQN quantizer, {num_bits} bits a face

{num_books} books of {num_words} words. Takes face vectors of {dim} numbers, of the network it was fitted on and no
other.

Method: after Zhang, Zhe, Yan, Orthonormal Product Quantization Network for Scalable Face Image Retrieval, Pattern
Recognition 141 (2023) 109671.

```python
import opqn

quantizer = opqn.OPQNQuantizer.load("THIS FOLDER")
codes = quantizer.encode(vectors)
```

## Training

| fact | value |
|---|---|
{facts}

## Limits

Faces are personal data: use them only with a right to. A quantizer holds statistics of the vectors it was fitted on,
and inherits their limits and the terms of their licence.
"""


class QuantizerSettings(Settings):
    """All that encoding depends on beside the weights."""

    num_bits: int
    num_books: int
    num_words: int
    dim: int = Field(ge=1, le=MAX_DIM)
    normalize: bool
    query_temperature: float = Field(gt=0, allow_inf_nan=False)
    random_state: int | None = Field(ge=0, lt=1 << 32)

    def check(self) -> None:
        """Raise ConfigError if no code has that shape and length."""
        check_code_shape(self.num_books, self.num_words, self.num_words)
        if self.num_bits != self.num_books * (self.num_words.bit_length() - 1):
            raise ConfigError(f"num_bits is {self.num_bits}; {self.num_books} x {self.num_words} words have others")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of the weights."""
        book_dim = -(-self.dim // self.num_books)
        return {
            "mean": (self.dim,),
            "axes": (self.num_books, book_dim, self.dim),
            "projection": (self.num_books, book_dim + 1, self.num_words),
        }


class Config(Settings):
    """What ``config.json`` says."""

    format: str
    format_version: int
    opqn_version: str
    fingerprint: str
    quantizer: QuantizerSettings
    training: dict[str, Any]


def write(folder: Path, config: dict[str, Any], weights: dict[str, NDArray[np.float32]]) -> None:
    """Write configuration, weights and card."""
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **config}
    facts = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in config["training"].items())
    contiguous = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    with atomic_folder(folder) as aside:
        write_synced(aside / WEIGHTS_FILE, safetensors.numpy.save(contiguous))
        write_synced(aside / CONFIG_FILE, json.dumps(document, indent=2, ensure_ascii=False).encode())
        write_synced(aside / CARD_FILE, CARD.format(facts=facts, **config["quantizer"]).encode())


def read(folder: Path) -> tuple[Config, dict[str, NDArray[np.float32]]]:
    """Read configuration and weights, and check that they fit each other.

    Raises:
        CorruptFileError: they do not, or a file is missing, of a newer format, or not what its name says.
    """
    recover_folder(folder)
    config = _read_config(folder / CONFIG_FILE)
    return config, _read_weights(folder / WEIGHTS_FILE, config.quantizer.shapes())


def _read_config(path: Path) -> Config:
    try:
        stored = json.loads(_read_bytes(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}; get the folder again from where it came") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise CorruptFileError(f"{path} is not the configuration of an opqn quantizer")
    version = stored.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CorruptFileError(
            f"{path} has format version {version}; this opqn reads up to {FORMAT_VERSION}: update opqn"
        )
    try:
        config = Config(**stored)
        config.quantizer.check()
    except (ConfigError, TypeError) as error:
        raise CorruptFileError(f"{path} describes no quantizer that can be built: {error}") from error
    return config


def _read_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    expected_bytes = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    try:
        weights = safetensors.numpy.load(_read_bytes(path, expected_bytes + MAX_HEADER_BYTES))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} cannot be read as safetensors: {error}") from error
    found = {name: (array.shape, array.dtype) for name, array in weights.items()}
    if found != {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}:
        raise CorruptFileError(
            f"{path} does not fit the configuration beside it: its tensors have other names, shapes or types; get the "
            "folder again from where it came"
        )
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise CorruptFileError(f"{path} holds NaN or infinity; get the folder again from where it came")
    return weights


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path.parent} is no quantizer folder: {path.name} is missing") from error
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error}") from error
    if len(data) > limit:
        raise CorruptFileError(f"{path} is larger than what it can hold ({limit:,} bytes); get the folder again")
    return data
