"""Settings of a training: TOML files, presets and ``--set a.b=c``, all checked before any work starts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from opqn._settings import Settings, nearest, parse_override
from opqn.data.augment import Augmentation
from opqn.errors import ConfigError
from opqn.model import ModelConfig

DEFAULT_METHOD: Final = "opqn"


class LossSettings(Settings):
    """The loss of :class:`opqn.losses.OPQNLoss`, and how its parts come in."""

    scale: float = Field(default=20.0, gt=0, description="factor on the cosine logits")
    margin: float = Field(default=0.5, ge=0, lt=2, description="taken off the true class's cosine")
    mu: float = Field(default=0.1, ge=0, description="weight of the entropy of the assignments")
    original_share: float = Field(
        default=0.5, ge=0, le=1, description="of original features in the classification; the rest is quantized ones"
    )
    margin_ramp_epochs: float = Field(default=0.0, ge=0, description="epochs over which the margin grows from 0")
    mu_ramp_epochs: float = Field(default=0.0, ge=0, description="epochs over which mu grows from 0")

    @model_serializer(mode="wrap")
    def _leave_out_the_paper_s_share(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Written as before there was a choice, so that older checkpoints go on.
        values: dict[str, Any] = handler(self)
        if self.original_share == LossSettings.model_fields["original_share"].default:
            del values["original_share"]
        return values


class TrainSettings(Settings):
    """The optimiser, its schedule, validation and the machine."""

    epochs: int = Field(default=200, ge=1, description="passes over the training images")
    batch_size: int = Field(default=256, ge=2, description="images of one optimiser step, over all processes")
    accumulation: int = Field(default=1, ge=1, description="parts that a step's images are worked through in")
    learning_rate: float = Field(default=0.1, gt=0, description="its highest value")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(default=5e-4, ge=0, description="on every weight, as the authors")
    schedule: Literal["step", "cosine"] = Field(default="step", description="step is the paper's")
    step_epochs: int = Field(default=35, ge=1, description="epochs between two drops of the step schedule")
    step_factor: float = Field(default=0.5, gt=0, le=1, description="what a drop multiplies the rate by")
    warmup_epochs: float = Field(default=0.0, ge=0, description="epochs of linear growth from 0 to learning_rate")
    clip_norm: float = Field(default=0.0, ge=0, description="largest norm of the gradient; 0 does not clip")
    validation: Literal["unseen", "seen", "none"] = Field(
        default="unseen", description="what leaves the training set for validation: people, or images of every person"
    )
    validation_share: float = Field(default=0.1, gt=0, lt=1, description="how much of them leaves")
    validation_every: int = Field(default=1, ge=1, description="epochs between two validations")
    fit_query_temperature: bool = Field(
        default=True, description="choose model.query_temperature on the validation split"
    )
    start: str = Field(
        default="", description="model folder whose network the training starts from; the head begins anew"
    )
    seed: int = Field(default=0, ge=0, description="of every random draw")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="auto takes the fastest there is")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="of the backbone; fp16 needs a GPU"
    )
    workers: int = Field(default=2, ge=0, description="processes that decode images too many to keep in memory")
    cache_mb: int = Field(default=2048, ge=0, description="memory for decoded images")
    checkpoint_minutes: float = Field(default=5.0, gt=0, description="also at the end of every epoch")
    tensorboard: bool = Field(default=False, description="write TensorBoard files to the run's folder")


class TrainingSettings(Settings):
    """All settings of a training.

    ``method`` trains another method than OPQN, one of those of ``opqn.baselines.methods.METHODS``, with the same
    network and loop, and ``method_settings`` are that method's own. Both are looked at when the training starts.
    """

    model: ModelConfig = ModelConfig()
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    augment: Augmentation = Augmentation()
    method: str = Field(default=DEFAULT_METHOD, description="opqn, or a method that it is compared with")
    method_settings: dict[str, float] = Field(default={}, description="of a method other than opqn")

    @model_serializer(mode="wrap")
    def _leave_out_the_default_method(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # OPQN's settings are written as they were before there were others, so that its older checkpoints go on.
        values: dict[str, Any] = handler(self)
        if self.method == DEFAULT_METHOD and not self.method_settings:
            values = {key: value for key, value in values.items() if key not in ("method", "method_settings")}
        return values


def preset_names() -> list[str]:
    """Names of the presets that come with opqn, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _presets().iterdir() if entry.name.endswith(".toml"))


def load_settings(
    preset: str | None = None,
    file: str | Path | None = None,
    num_bits: int | None = None,
    overrides: Sequence[str] = (),
) -> TrainingSettings:
    """Put settings together: preset, then file, then the code length, then overrides; the later wins.

    Only a length that is asked for wins over the file; the default one gives way to the file's own ``model`` settings.

    Args:
        preset: a name of :func:`preset_names`.
        file: a TOML file with ``method`` and tables ``method_settings``, ``model``, ``loss``, ``train``, ``augment``.
        num_bits: a length that the preset's (or the file's) table ``lengths`` lists; without it ``default_bits`` holds.
        overrides: ``a.b=c``, the value written as in TOML; a bare word is a string.

    Raises:
        ConfigError: an unknown preset, key or length, a value out of range, or a file that is no TOML.
    """
    values: dict[str, Any] = {}
    if preset is not None:
        if preset not in preset_names():
            raise ConfigError(f"unknown preset {preset!r}; {nearest(preset, preset_names(), 'presets')}")
        values = tomllib.loads((_presets() / f"{preset}.toml").read_text(encoding="utf-8"))
    own = _read_toml(Path(file)) if file is not None else {}
    values = _merge(values, own)
    lengths, default_bits = values.pop("lengths", {}), values.pop("default_bits", None)
    if not isinstance(lengths, dict):
        raise ConfigError("lengths must be a table with a table of model settings for every code length")
    bits = num_bits if num_bits is not None else default_bits
    if bits is not None:
        if str(bits) not in lengths:
            raise ConfigError(f"no setting for {bits} bits here; lengths: {', '.join(lengths) or 'none'}")
        values = _merge(values, {"model": lengths[str(bits)]})
        if num_bits is None and "model" in own:  # a length that nobody asked for gives way to the file
            values = _merge(values, {"model": own["model"]})
    for override in overrides:
        values = _merge(values, parse_override(override))
    return TrainingSettings(**values)


def _presets() -> Any:
    return resources.files("opqn") / "presets"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"cannot read the settings file {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
