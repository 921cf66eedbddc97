"""The base of every settings class: strict keys, and errors that a person can act on."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from opqn.errors import ConfigError


class Settings(BaseModel):
    """Frozen settings; an unknown key or a value out of range raises ConfigError and names the nearest known key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = [
                _explain(type(self), problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()
            ]
            raise ConfigError("; ".join(problems)) from error


def _explain(settings: type[BaseModel], where: Iterable[int | str], kind: str, message: str) -> str:
    path = [str(part) for part in where]
    name = ".".join(path)
    if kind == "extra_forbidden":
        return f"unknown setting {name!r}; {nearest(path[-1], settings.model_fields)}"
    message = message.removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def nearest(name: str, known: Iterable[str], what: Literal["settings", "presets", "keys"] = "settings") -> str:
    """Say which known name is nearest to ``name``, or list them all when none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known {what}: {', '.join(known)}"


def parse_override(text: str) -> dict[str, Any]:
    """Read ``a.b=c``, the value as in TOML, a bare word as a string, into nested tables.

    Raises:
        ConfigError: it is not of that form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r} is not of the form a.b=c")
    parsed: Any
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(name.strip().split(".")):
        parsed = {part: parsed}
    result: dict[str, Any] = parsed
    return result
