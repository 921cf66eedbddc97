"""What a training needs to go on: safetensors and JSON in one folder that a crash leaves whole.

No random state is stored: every draw of a training is a function of its seed and its step.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from opqn._files import atomic_folder, recover_folder, write_synced
from opqn.errors import ConfigError, CorruptFileError

FORMAT_VERSION: Final = 1
TENSORS_FILE: Final = "state.safetensors"
STATE_FILE: Final = "state.json"


def has_checkpoint(folder: Path) -> bool:
    """Say whether ``folder`` holds a checkpoint, putting back one that a kill left half exchanged."""
    recover_folder(folder)
    return (folder / STATE_FILE).is_file()


def save_checkpoint(
    folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write module tensors, the optimiser's momentum and ``state``.

    Raises:
        OpqnError: the disk is full or cannot be written; the checkpoint that stood there is unchanged.
    """
    tensors = {
        f"{prefix}.{name}": tensor.detach().cpu().contiguous()
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    for number, parameter in enumerate(_parameters(optimizer)):
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{number}"] = momentum.detach().cpu().contiguous()
    data = safetensors.torch.save(tensors)
    header = {"format_version": FORMAT_VERSION, "sha256": _digest(data, state)}
    with atomic_folder(folder) as aside:
        write_synced(aside / TENSORS_FILE, data)
        write_synced(aside / STATE_FILE, json.dumps({**header, **state}).encode())


def load_checkpoint(
    folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> dict[str, Any]:
    """Put a checkpoint's tensors into modules and optimiser, and return its state.

    Raises:
        CorruptFileError: the checkpoint is truncated, changed or of a newer format.
        ConfigError: it was made with other ``settings``; the message names the first that differ.
    """
    state = _read_state(folder)
    digest = state.pop("sha256", None)
    differing = _differences(state.get("settings"), settings)
    if differing:
        raise ConfigError(
            f"{folder} was made with other settings ({'; '.join(differing[:3])}); resume with the settings it was "
            "started with, or choose another --out"
        )
    try:
        data = (folder / TENSORS_FILE).read_bytes()
        tensors = safetensors.torch.load(data)
        for prefix, module in modules.items():
            module.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in module.state_dict()})
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise CorruptFileError(
            f"{folder / TENSORS_FILE} does not hold this training's tensors: {error}; delete {folder} to start again"
        ) from error
    if _digest(data, state) != digest:
        raise CorruptFileError(f"{folder} was changed after it was saved; delete it to start again")
    for number, parameter in enumerate(_parameters(optimizer)):
        momentum = tensors.get(f"momentum.{number}")
        if momentum is not None:
            # In the parameter's memory format, so that the arithmetic is the same as without the interruption.
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
    return state


def stored_settings(folder: Path) -> dict[str, Any]:
    """Return the settings that a checkpoint was made with.

    Raises:
        CorruptFileError: the checkpoint is damaged or of a newer format.
    """
    settings = _read_state(folder).get("settings")
    return settings if isinstance(settings, dict) else {}


def _read_state(folder: Path) -> dict[str, Any]:
    """Return what ``STATE_FILE`` holds beside its version.

    Raises:
        CorruptFileError: it is damaged or of a newer format.
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE_FILE).read_bytes())
        version = int(state.pop("format_version"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(
            f"{folder / STATE_FILE} is no checkpoint: {error!r}; delete {folder} to start again"
        ) from error
    if version > FORMAT_VERSION:
        raise CorruptFileError(f"{folder} has format version {version}; this opqn reads up to {FORMAT_VERSION}")
    return state


def _digest(tensors: bytes, state: dict[str, Any]) -> str:
    digest = hashlib.sha256(tensors)
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            text
            for key in sorted(stored.keys() | wanted.keys())
            for text in _differences(stored.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if stored == wanted else [f"{name} was {stored}, is {wanted}"]
