"""A trained comparison method: the shared network with the method's head, and its folder on disk."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import safetensors.torch
import torch

from opqn._files import atomic_folder, recover_folder, write_synced
from opqn._version import __version__
from opqn.baselines.method import Method
from opqn.baselines.methods import make_method
from opqn.errors import ConfigError, CorruptFileError, DataError
from opqn.model import CONFIG_FILE, FORMAT_VERSION, OPQN, WEIGHTS_FILE, ModelConfig, read_json


class BaselineModel(OPQN):
    """Face crops in, a comparison method's codes and lookup tables out; everything that an OPQN model can do.

    Args:
        config: the network, and the shape M x K that gives the code's length and a quantizer's books.
        method: what stands in the place of OPQN's head.
        training_facts: what is known of how the weights came about.

    Raises:
        ConfigError: ``config.refit``, which is for OPQN's head, or a shape that the method cannot have.
    """

    FORMAT: ClassVar[str] = "opqn-baseline"
    FIELDS: ClassVar[Mapping[str, type]] = {**OPQN.FIELDS, "method": dict}

    def __init__(self, config: ModelConfig, method: Method, training_facts: dict[str, Any] | None = None) -> None:
        if config.refit:
            raise ConfigError(
                f"model.refit finds OPQN's head anew, and {method.name} has a head of its own; leave model.refit out"
            )
        super().__init__(config, training_facts)
        self.method = method
        head = method.build_head(config)
        self._shape = cast("tuple[int, int]", (head.num_books, head.num_words))
        self.add_module("quantizer", head)  # it has the calls of the head that it replaces

    @property
    def num_books(self) -> int:
        """B, numbers in a code: books, or bytes of a binary code."""
        return self._shape[0]

    @property
    def num_words(self) -> int:
        """K, values each number can take."""
        return self._shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of the method, its settings, the configuration and every weight."""
        method = json.dumps(self._described_method(), sort_keys=True)
        return hashlib.sha256(f"{method} {super().fingerprint}".encode()).hexdigest()

    def _described_method(self) -> dict[str, Any]:
        return {"name": self.method.name, "settings": self.method.model_dump()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; the folder appears whole or not at all.

        Raises:
            OpqnError: the disk is full or the place cannot be written; what stood there is unchanged.
        """
        config = {
            "format": self.FORMAT,
            "format_version": FORMAT_VERSION,
            "opqn_version": __version__,
            "fingerprint": self.fingerprint,
            "method": self._described_method(),
            "model": self.config.model_dump(),
            "training": self.training_facts,
        }
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_folder(Path(folder)) as aside:
            write_synced(aside / WEIGHTS_FILE, safetensors.torch.save(weights, {"format": "pt"}))
            write_synced(aside / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False).encode())

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load what :meth:`save_pretrained` wrote. Nothing in the folder is executed; unlike OPQN's, it is local.

        Raises:
            DataError: there is no such folder.
            CorruptFileError: the folder is incomplete, changed, or of a newer format.
        """
        folder = Path(folder_or_hub_id)
        recover_folder(folder)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of a trained comparison method here")
        return cls._from_folder(folder, device)

    @classmethod
    def _from_config(cls, stored: Mapping[str, Any]) -> Self:
        name, settings = stored["method"].get("name"), stored["method"].get("settings")
        if not isinstance(name, str) or not isinstance(settings, dict):
            raise ConfigError("its method has no name or no settings")
        return cls(ModelConfig(**stored["model"]), make_method(name, settings), stored["training"])


def load_model(folder_or_hub_id: str | Path, device: str | torch.device = "cpu") -> OPQN:
    """Load a model folder of either kind, or a repository of the Hugging Face Hub that holds an OPQN model.

    Nothing in the folder is executed: which class reads it, its configuration says, and that class checks the rest.

    Returns:
        An :class:`opqn.OPQN`, of a comparison method a :class:`BaselineModel`.

    Raises:
        DataError: there is no such folder, or the Hub cannot be reached.
        CorruptFileError: the folder is incomplete, changed, of another format or of a newer one.
    """
    folder = Path(folder_or_hub_id)
    recover_folder(folder)
    if not folder.is_dir():
        return OPQN.from_pretrained(folder_or_hub_id, device)
    path = folder / CONFIG_FILE
    found = read_json(path).get("format")
    for kind in (OPQN, BaselineModel):
        if found == kind.FORMAT:
            return kind.from_pretrained(folder, device)
    raise CorruptFileError(
        f"{path} is not the configuration of an {OPQN.FORMAT} or {BaselineModel.FORMAT}, its format is "
        f"{reprlib.repr(found)}; give the folder of a model, or update opqn if a newer one wrote it"
    )
