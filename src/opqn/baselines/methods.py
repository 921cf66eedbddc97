"""The methods that OPQN is compared with, by name; each is trained by the same loop as OPQN."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

from opqn.baselines.cosface import CosFace
from opqn.baselines.csq import CSQ
from opqn.baselines.dcdh import DCDH
from opqn.baselines.dcwh import DCWH
from opqn.baselines.ddqh import DDQH
from opqn.baselines.dpah import DPAH
from opqn.baselines.dpq import DPQ
from opqn.baselines.gpq import GPQ
from opqn.baselines.l2q import L2Q
from opqn.baselines.method import Method
from opqn.config import DEFAULT_METHOD, TrainingSettings
from opqn.errors import ConfigError

METHODS: Final[dict[str, type[Method]]] = {
    kind.name: kind for kind in (CosFace, CSQ, DCDH, DCWH, DDQH, DPAH, DPQ, GPQ, L2Q)
}


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """Make a method with settings of its own.

    Raises:
        ConfigError: an unknown method or setting; the message names the nearest.
    """
    if name not in METHODS:
        known = [DEFAULT_METHOD, *METHODS]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known methods: {', '.join(known)}"
        raise ConfigError(f"unknown method {name!r}; {hint}")
    return METHODS[name](**settings)


def method_of(settings: TrainingSettings) -> Method | None:
    """Return the method that a training's settings name, None for OPQN itself.

    Where a method has OPQN's scale, margin or mu, they follow the table ``loss``, so that a preset holds for both.

    Raises:
        ConfigError: an unknown method or setting; the message names the nearest.
    """
    if settings.method == DEFAULT_METHOD:
        if settings.method_settings:
            raise ConfigError(
                f"method_settings has {next(iter(settings.method_settings))!r}, but OPQN's settings stand in the table "
                "loss; name another method, or leave method_settings out"
            )
        return None
    fields = METHODS[settings.method].model_fields if settings.method in METHODS else {}
    follows = {key: value for key, value in settings.loss.model_dump().items() if key in fields}
    return make_method(settings.method, {**follows, **settings.method_settings})
