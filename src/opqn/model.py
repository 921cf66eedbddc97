"""The model: a backbone and the quantizing head, its configuration, and its folder on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from opqn._files import atomic_folder, recover_folder, write_synced
from opqn._settings import Settings
from opqn._version import __version__
from opqn.backbones import build_backbone, default_image_size
from opqn.codebooks import CodebookKind, check_code_shape
from opqn.data.images import load_image, to_array
from opqn.errors import ConfigError, CorruptFileError, DataError
from opqn.quantizer import OrthonormalQuantizer, QuantizerOutput, RefittedQuantizer

FORMAT_VERSION: Final = 1
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
CARD_FILE: Final = "README.md"
MAX_BOOK_DIM: Final = 4096  # a bound on what a hostile configuration can make us allocate
MAX_SIDE: Final = 1024  # likewise, of an image

RGB = tuple[float, float, float]
# The authors' statistics for 32-px sets, and theirs for 112 px.
STATISTICS_32: Final[tuple[RGB, RGB]] = ((0.639, 0.479, 0.404), (0.216, 0.183, 0.171))
STATISTICS_112: Final[tuple[RGB, RGB]] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

CARD: Final = """---
library_name: opqn
tags: [face-retrieval, product-quantization, opqn]
---
# OPQN, {num_bits} bits a face

Backbone `{backbone}`; {num_books} books of {num_words} {codebooks} codewords in {book_dim} dimensions each. Input:
aligned face crops, resized to {resize} px, centre crop {image_size} px.

Method: Zhang, Zhe, Yan, Orthonormal Product Quantization Network for Scalable Face Image Retrieval, Pattern Recognition
141 (2023) 109671.

```python
import opqn

model = opqn.OPQN.from_pretrained("THIS FOLDER")
codes = model.encode(["face.jpg"])
```

## Training

| fact | value |
|---|---|
{facts}

## Limits

Faces are personal data: use them only with a right to. A model inherits the limits of the faces it was trained on, and
the terms of their licence.
"""

ImageInput = str | Path | bytes | Image.Image
Images = ImageInput | Sequence[ImageInput] | NDArray[np.uint8] | Tensor


class ModelConfig(Settings):
    """Everything that makes a model what it is, but its weights.

    ``image_size``, ``resize``, ``mean`` and ``std`` follow the backbone where they are not given: 32-px networks take a
    centre crop of 32 from a 35-px image and the authors' channel statistics, 112-px ones 112 from 120 and 0.5.

    Raises:
        ConfigError: an unknown field, a value out of range, or a shape that the method cannot have.
    """

    backbone: str = Field(default="resnet20-32", description="see opqn.build_backbone")
    num_books: int = Field(default=8, description="M, numbers in a code")
    num_words: int = Field(default=64, description="K, values of each; a power of two, at most 256")
    book_dim: int = Field(default=64, le=MAX_BOOK_DIM, description="d, at least K")
    codebooks: CodebookKind = Field(default="dct", description="dct (the paper's), hadamard, random or learned")
    codebook_seed: int = Field(default=0, ge=0, description="of codebooks that are drawn")
    query_temperature: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="T of the queries' tables; 1 is the paper's"
    )
    refit: bool = Field(
        default=False, description="find the head anew after training, without descent; not of the paper"
    )
    dropout: float = Field(default=0.5, ge=0, lt=1, description="before the last linear layer")
    flip_average: bool = Field(
        default=False, description="encode the mean of the features of an image and its mirror; takes twice as long"
    )
    image_size: int = Field(default=0, ge=0, le=MAX_SIDE, description="side of the crop; follows the backbone")
    resize: int = Field(default=0, ge=0, le=MAX_SIDE, description="side before the crop; follows image_size")
    mean: RGB | None = Field(default=None, description="of the channels; follows image_size")
    std: RGB | None = Field(default=None, description="of the channels; follows image_size")

    @model_validator(mode="before")
    @classmethod
    def _follow_backbone(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = {key: value for key, value in values.items() if value is not None}
        size = filled.get("image_size") or default_image_size(str(filled.get("backbone", "resnet20-32")))
        filled["image_size"] = size
        if not filled.get("resize") and isinstance(size, int) and size <= MAX_SIDE:
            # 35 for 32 and 120 for 112, as the authors; the same share for other sizes.
            filled["resize"] = round(size * 1.0715) + (size == 32)
        mean, std = STATISTICS_32 if size == 32 else STATISTICS_112
        return {"mean": mean, "std": std, **filled}

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_code_shape(self.num_books, self.book_dim, self.num_words)
        size = default_image_size(self.backbone)
        if self.image_size != size and not self.backbone.startswith("timm/"):
            raise ConfigError(f"image_size is {self.image_size}; {self.backbone!r} takes images of {size}")
        if not all(map(math.isfinite, [*(self.mean or ()), *(self.std or ())])) or min(self.std or (1,)) <= 0:
            raise ConfigError(f"mean {self.mean} and std {self.std} must be finite, and std positive")
        if self.resize < self.image_size:
            raise ConfigError(f"resize ({self.resize}) is smaller than the crop, image_size ({self.image_size})")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_refit(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The paper's models are written as they were before there was another head: their fingerprints stay.
        values: dict[str, Any] = handler(self)
        if not self.refit:
            del values["refit"]
        return values

    @property
    def num_bits(self) -> int:
        """Bits of a code: M * log2(K)."""
        return self.num_books * (self.num_words.bit_length() - 1)

    @property
    def feature_dim(self) -> int:
        """Length of a feature vector: M * d."""
        return self.num_books * self.book_dim


class OPQN(nn.Module):
    """Orthonormal Product Quantization Network: face crops in, codes and lookup tables out.

    Args:
        config: what to build.
        training_facts: what is known of how the weights came about; kept in the model folder.

    Raises:
        ConfigError: an unknown backbone or a shape that the method cannot have.
    """

    FORMAT: ClassVar[str] = "opqn-model"
    """What the configuration in a model folder calls such a model."""
    FIELDS: ClassVar[Mapping[str, type]] = {"format_version": int, "fingerprint": str, "model": dict, "training": dict}
    """What else it has to hold."""

    def __init__(self, config: ModelConfig, training_facts: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.training_facts = training_facts or {}
        self.backbone = build_backbone(config.backbone, config.feature_dim, config.dropout)
        head = RefittedQuantizer if config.refit else OrthonormalQuantizer
        self.quantizer = head(
            config.num_books,
            config.book_dim,
            config.num_words,
            config.codebooks,
            config.query_temperature,
            config.codebook_seed,
        )

    @property
    def num_books(self) -> int:
        """M, numbers in a code."""
        return self.config.num_books

    @property
    def num_words(self) -> int:
        """K, values each number can take."""
        return self.config.num_words

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quantizer.projection.device

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of the configuration and every weight. Equal models, and only they, have equal ones."""
        digest = hashlib.sha256(_canonical(self.config.model_dump()))
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def forward(self, images: Tensor) -> QuantizerOutput:
        """Assign (N, 3, S, S) float32 images, normalised by :meth:`normalise`, softly to codewords."""
        output: QuantizerOutput = self.quantizer(self.backbone(images))
        return output

    def normalise(self, images: Tensor) -> Tensor:
        """Turn (N, 3, S, S) uint8 crops into the network's float32 input, on its device."""
        mean = torch.tensor(self.config.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.config.std, device=self.device)[:, None, None]
        return (images.to(self.device).float() / 255 - mean) / std

    @torch.no_grad()
    def features(self, images: Images, batch_size: int = 256) -> Tensor:
        """Return the (N, M*d) float32 feature vectors of images, on the CPU. See :meth:`encode` for the arguments."""
        was_training = self.training
        self.eval()
        try:
            parts = [self._features(batch).cpu() for batch in self._batches(images, batch_size)]
        finally:
            self.train(was_training)
        return torch.cat(parts) if parts else torch.empty(0, self.config.feature_dim)

    def _features(self, batch: Tensor) -> Tensor:
        features: Tensor = self.backbone(batch).float()
        if self.config.flip_average:
            features = (features + self.backbone(batch.flip(3)).float()) / 2
        return features

    def encode(self, images: Images, batch_size: int = 256) -> NDArray[np.uint8]:
        """Return the (N, M) uint8 codes of images.

        Args:
            images: aligned face crops: one or several paths, encoded files (bytes) or PIL images, an (N, H, W, 3) uint8
                array, an (N, 3, H, W) uint8 tensor, or an (N, 3, S, S) float tensor that :meth:`normalise` made.
            batch_size: images that go through the network at once.

        Raises:
            DataError: an image cannot be read, or an array has another shape or type.
            ConfigError: ``batch_size`` is below 1.
        """
        return self.encode_features(self.features(images, batch_size))

    def lookup_tables(self, images: Images, batch_size: int = 256) -> NDArray[np.float32]:
        """Return the (Q, M, K) float32 lookup tables of query images; arguments as for :meth:`encode`."""
        return self.tables_of_features(self.features(images, batch_size))

    def encode_features(self, features: Tensor) -> NDArray[np.uint8]:
        """Return the (N, M) uint8 codes of (N, M*d) feature vectors."""
        return cast("NDArray[np.uint8]", self.quantizer.encode(features.to(self.device)).cpu().numpy())

    def tables_of_features(self, features: Tensor, query_temperature: float | None = None) -> NDArray[np.float32]:
        """Return the (Q, M, K) float32 lookup tables of (Q, M*d) feature vectors."""
        tables = self.quantizer.lookup_tables(features.to(self.device), query_temperature)
        return cast("NDArray[np.float32]", tables.cpu().numpy())

    @torch.no_grad()
    def assignments(self, features: Tensor) -> NDArray[np.float32]:
        """Return the (N, M, K) float32 soft assignments of (N, M*d) feature vectors.

        They are those that training sees or, once the head is refitted, those that codes are the argmax of.
        """
        return cast("NDArray[np.float32]", self.quantizer(features.to(self.device)).probs.cpu().numpy())

    def with_query_temperature(self, query_temperature: float) -> Self:
        """Set the temperature of the queries' tables; it is part of the configuration and the fingerprint.

        Raises:
            ConfigError: it is not a positive finite number.
        """
        self.config = ModelConfig(**{**self.config.model_dump(), "query_temperature": query_temperature})
        self.quantizer.query_temperature = query_temperature
        return self

    def _batches(self, images: Images, batch_size: int) -> Iterator[Tensor]:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if isinstance(images, (str, Path, bytes, Image.Image)):
            images = [images]
        if isinstance(images, Tensor) and images.is_floating_point():
            size = self.config.image_size
            if images.shape[1:] != (3, size, size):
                raise DataError(f"a float batch must be (N, 3, {size}, {size}), not {tuple(images.shape)}")
            yield from (
                images[start : start + batch_size].to(self.device, torch.float32)
                for start in range(0, len(images), batch_size)
            )
            return
        if isinstance(images, Tensor):
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
                raise DataError(f"a torch batch must be (N, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3):
            raise DataError(f"an array of images must be (N, H, W, 3) uint8, not {images.shape} {images.dtype}")
        for start in range(0, len(images), batch_size):
            crops = np.stack([self._crop(image) for image in images[start : start + batch_size]])
            yield self.normalise(torch.from_numpy(crops).permute(0, 3, 1, 2))

    def _crop(self, image: ImageInput | NDArray[np.uint8]) -> NDArray[np.uint8]:
        size, resize = self.config.image_size, self.config.resize
        if not isinstance(image, np.ndarray):
            pixels = to_array(load_image(image, min_side=resize), resize)
        elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(f"an array of an image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
        elif image.shape[:2] == (resize, resize):
            pixels = image
        else:
            pixels = to_array(Image.fromarray(image), resize)
        start = (resize - size) // 2
        return pixels[start : start + size, start : start + size]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card; the folder appears whole or not at all.

        Raises:
            OpqnError: the disk is full or the place cannot be written; what stood there is unchanged.
        """
        config = {
            "format": self.FORMAT,
            "format_version": FORMAT_VERSION,
            "opqn_version": __version__,
            "fingerprint": self.fingerprint,
            "model": self.config.model_dump(),
            "training": self.training_facts,
        }
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_folder(Path(folder)) as aside:
            write_synced(aside / WEIGHTS_FILE, safetensors.torch.save(weights, {"format": "pt"}))
            write_synced(aside / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False).encode())
            write_synced(aside / CARD_FILE, self._card().encode())

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a model folder, or a repository of the Hugging Face Hub that holds one.

        Nothing in the folder is executed: weights are safetensors, the configuration is JSON, both are checked.

        Raises:
            DataError: there is no such folder, or the Hub cannot be reached.
            CorruptFileError: the folder is incomplete, changed, or of a newer format.
        """
        folder = Path(folder_or_hub_id)
        recover_folder(folder)
        return cls._from_folder(folder if folder.is_dir() else _download(str(folder_or_hub_id)), device)

    @classmethod
    def _from_folder(cls, folder: Path, device: str | torch.device) -> Self:
        stored = read_config(folder / CONFIG_FILE, cls.FORMAT, cls.FIELDS)
        try:
            with torch.device("meta"):
                model = cls._from_config(stored)
        except (ConfigError, TypeError) as error:
            raise CorruptFileError(f"{folder / CONFIG_FILE} describes no model that can be built: {error}") from error
        model.load_state_dict(read_weights(folder / WEIGHTS_FILE, model.state_dict()), assign=True)
        model.requires_grad_(requires_grad=True)
        model.eval()
        if model.fingerprint != stored["fingerprint"]:
            raise CorruptFileError(
                f"{folder}: the weights or the configuration changed after the model was saved (fingerprint differs); "
                "get the folder again from where it came"
            )
        return model.to(device)

    @classmethod
    def _from_config(cls, stored: Mapping[str, Any]) -> Self:
        """Build the model that a configuration with all of :attr:`FIELDS` describes; its weights are to be loaded.

        Raises:
            ConfigError: it describes none.
            TypeError: likewise.
        """
        return cls(ModelConfig(**stored["model"]), stored["training"])

    def _card(self) -> str:
        facts = "\n".join(f"| {key} | {value} |" for key, value in self.training_facts.items())
        return CARD.format(
            facts=facts or "| not recorded | |", num_bits=self.config.num_bits, **self.config.model_dump()
        )


def find_device(name: str = "auto") -> torch.device:
    """Return a device of this machine: cpu, cuda or mps, or with "auto" the fastest there is.

    Raises:
        ConfigError: it is not to be had here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        known = name.partition(":")[0] in ("cpu", "cuda", "mps")  # torch has more, some of them without any data
        device = torch.empty(0, device=name).device if known else None
    except (RuntimeError, AssertionError):
        device = None
    if device is None:
        raise ConfigError(f"the device {name!r} is not to be had here; use auto, cpu, cuda or mps")
    return device


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (a second to import, rarely needed)

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]))
    except Exception as error:  # beside its own errors come those of its HTTP library, which depends on its version
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{hub_id}: no such model folder here, and not to be had from the Hub ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file of a model folder.

    Raises:
        CorruptFileError: the file is missing, damaged or holds something else.
    """
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path.parent} is no model folder: {path.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, dict):
        raise CorruptFileError(f"{path} holds no JSON object")
    return stored


def read_config(path: Path, file_format: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """Read the configuration in a model folder.

    Args:
        path: of the file.
        file_format: what it says it is.
        fields: entries that it has to have, and of which type.

    Raises:
        CorruptFileError: it is missing, damaged, of something else, or of a newer opqn.
    """
    stored = read_json(path)
    if stored.get("format") != file_format:
        raise CorruptFileError(f"{path} is not the configuration of an {file_format}")
    for name, kind in fields.items():
        if not isinstance(stored.get(name), kind):
            raise CorruptFileError(f"{path}: {name} is missing or not a {kind.__name__}")
    if stored["format_version"] > FORMAT_VERSION:
        raise CorruptFileError(
            f"{path} has format version {stored['format_version']}; this opqn reads up to {FORMAT_VERSION}: update opqn"
        )
    return stored


def read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read weights that have the names, shapes and types expected.

    Raises:
        CorruptFileError: the file is missing, damaged or holds others.
    """
    try:
        weights = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path.parent} is no model folder: {path.name} is missing") from error
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{path} cannot be read as safetensors: {error}") from error
    wrong = sorted(
        (weights.keys() ^ expected.keys())
        | {
            name
            for name in weights.keys() & expected.keys()
            if weights[name].shape != expected[name].shape or weights[name].dtype != expected[name].dtype
        }
    )
    if wrong:
        raise CorruptFileError(
            f"{path} does not fit the configuration beside it: {len(wrong)} tensors missing, unknown or of another "
            f"shape, first {wrong[0]}; get the folder again from where it came"
        )
    return weights
