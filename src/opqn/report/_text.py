"""Names and titles come from folders and files; make them safe to draw and to write as UTF-8 and XML."""

from __future__ import annotations

import unicodedata
from typing import Final

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_NOT_XML: Final = "\ufffe\uffff"


def clean(text: str) -> str:
    """Replace what neither XML nor UTF-8 can hold: control characters (not line ends and tabs) and lone surrogates."""
    return "".join(
        _REPLACEMENT
        if char in _NOT_XML or (unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t")
        else char
        for char in text.replace("\r\n", "\n")
    )


def one_line(text: str) -> str:
    """Return :func:`clean` text with every run of white space made one space."""
    return " ".join(clean(text).split())
