"""A report as one HTML file that needs nothing else: no network, no scripts, no other files."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from opqn._files import atomic_write_bytes
from opqn.errors import ConfigError
from opqn.report._text import clean, one_line

Cell = str | int | float | None

_NO_VALUE: Final = "\N{EN DASH}"
_NUMBER_START: Final = re.compile(r"[~<>≤≥±+\-\N{MINUS SIGN}]?\s*\.?\d")
_JPEG_QUALITY: Final = 92

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --soft: #59606a; --rule: #d5d9de; --tint: #eef4fb; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e3e6ea; --soft: #a0a8b2; --rule: #363c44; --tint: #1f2c3b; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word; }
main { max-width: 960px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { margin-bottom: 2rem; padding-bottom: 1.25rem; border-bottom: 1px solid var(--rule); }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 2.75rem 0 0.5rem; font-size: 1.3rem; line-height: 1.3; }
p { max-width: 72ch; margin: 0 0 0.9rem; }
header p { margin: 0.5rem 0 0; color: var(--soft); font-size: 1.08rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid #3b82d6; outline-offset: 2px; }
.block { margin: 1.5rem 0 1.9rem; }
table { width: 100%; border-collapse: collapse; font-size: 0.95rem; font-variant-numeric: tabular-nums lining-nums; }
caption, figcaption { padding-bottom: 0.5rem; text-align: left; font-weight: 600; }
th, td { padding: 0.42rem 0.8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600; border-bottom-color: var(--soft); }
thead tr { border-top: 1px solid var(--soft); }
tbody th { font-weight: 400; min-width: 8rem; }
tbody tr:last-child > * { border-bottom-color: var(--soft); }
.number { text-align: right; white-space: nowrap; min-width: 0; }
thead .number { white-space: normal; }
.best { background: var(--tint); }
.note { margin-top: 0.5rem; color: var(--soft); font-size: 0.88rem; }
figure { margin: 1.5rem 0 1.9rem; }
.card { padding: 0.9rem; background: #fff; border: 1px solid var(--rule); border-radius: 8px; }
.card img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: 0.3rem 1.5rem; margin: 1.25rem 0;
  font-size: 0.95rem; font-variant-numeric: tabular-nums; }
dt { color: var(--soft); }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 620px) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.55rem; }
  th, td { padding: 0.4rem 0.55rem; }
  .card { padding: 0.5rem; }
  .scroll img { min-width: 540px; }
  tbody th { position: sticky; left: 0; background: var(--paper); }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 0.6rem; }
}
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --tint: #eee; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  .card { padding: 0; border: 0; }
  .scroll img { min-width: 0; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
}
"""

# The hash lets this one style sheet in and nothing else: no script, no other style, no address outside the file.
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; img-src data:; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"
)


class Page:
    """A report that is put together from top to bottom and rendered at the end.

    Everything given is text, never markup: it is escaped, and blank lines part paragraphs. The same calls give the same
    bytes.

    Args:
        title: the heading, also the title of the browser's window.
        subtitle: one line under it.

    Raises:
        ConfigError: the title is empty.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        if not title.strip():
            raise ConfigError("a page needs a title; give it one that says what is reported")
        self._title = title
        self._subtitle = subtitle
        self._parts: list[str] = []
        self._sections = 0

    def section(self, title: str, text: str = "") -> None:
        """Begin a section; what is added next belongs to it."""
        if self._sections:
            self._parts.append("</section>")
        self._sections += 1
        name = f"section-{self._sections}"
        self._parts.append(f'<section aria-labelledby="{name}">\n<h2 id="{name}">{_escape(one_line(title))}</h2>')
        self._parts.extend(f"<p>{_escape(part)}</p>" for part in _paragraphs(text))

    def table(
        self,
        caption: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        highlight: Collection[tuple[int, int]] = (),
        note: str = "",
    ) -> None:
        """Add a table whose first column names its rows.

        A column is aligned to the right if all its cells are numbers, texts that begin with one such as ``8 bytes``
        or ``.5``, or None. Integers are written with thousands separators, floats with four significant digits, None as
        a dash; write the rest with a formatter such as :func:`percent`.

        Args:
            caption: what the table shows.
            columns: one heading each.
            rows: as many cells each as there are columns.
            highlight: (row, column) of the cells to set in bold, counted from 0; say in ``note`` what bold means.
            note: small print under the table.

        Raises:
            ConfigError: a row has more or fewer cells than there are columns, or a highlighted cell does not exist.
        """
        for number, row in enumerate(rows):
            if len(row) != len(columns):
                raise ConfigError(
                    f"row {number} of table {caption!r} has {len(row)} cells for {len(columns)} columns; give one cell "
                    "a column, None where there is no value"
                )
        for cell in highlight:
            if not (0 <= cell[0] < len(rows) and 0 <= cell[1] < len(columns)):
                raise ConfigError(
                    f"table {caption!r} has no cell {cell} to highlight; rows and columns are counted from 0 and it "
                    f"has {len(rows)} rows and {len(columns)} columns"
                )
        numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(columns))]
        head = "".join(
            f'<th scope="col"{_css_class(number=number)}>{_escape(one_line(name))}</th>'
            for name, number in zip(columns, numeric, strict=True)
        )
        body = "\n".join(
            "<tr>"
            + "".join(
                _cell(value, heading=column == 0, number=numeric[column], best=(number, column) in highlight)
                for column, value in enumerate(row)
            )
            + "</tr>"
            for number, row in enumerate(rows)
        )
        title = _escape(one_line(caption))
        self._parts.append(
            f'<div class="block">\n<div class="scroll" role="region" aria-label="{title}" tabindex="0">\n<table>\n'
            f"<caption>{title}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
        )
        self._parts.extend(f'<p class="note">{_escape(part)}</p>' for part in _paragraphs(note))
        self._parts.append("</div>")

    def figure(self, picture: bytes | Image.Image, caption: str, alt: str) -> None:
        """Add a picture on a white card.

        Args:
            picture: an SVG document, kept as it is, or a picture of any size, stored as JPEG.
            caption: what the figure shows.
            alt: what a reader who cannot see it should know.

        Raises:
            ConfigError: ``alt`` is empty, or the bytes are no SVG document.
        """
        if not alt.strip():
            raise ConfigError(f"figure {caption!r} has no alt text; say in words what it shows")
        title = _escape(one_line(caption))
        # Charts stay readable when they shrink with the window; pictures are scrolled instead, by keyboard too.
        scroll = "" if isinstance(picture, bytes) else f' scroll" role="region" aria-label="{title}" tabindex="0'
        self._parts.append(
            f'<figure>\n<figcaption>{title}</figcaption>\n<div class="card{scroll}">'
            f'<img src="{_data_uri(picture)}" alt="{_escape(one_line(alt))}"></div>\n</figure>'
        )

    def facts(self, facts: Mapping[str, Cell]) -> None:
        """Add a list of named facts: seeds, the split's hash, versions, the command, how long it took."""
        entries = "\n".join(
            f"<dt>{_escape(one_line(name))}</dt><dd>{_escape(_cell_text(value))}</dd>" for name, value in facts.items()
        )
        self._parts.append(f"<dl>\n{entries}\n</dl>")

    def render(self) -> str:
        """Return the whole document."""
        title = _escape(one_line(self._title))
        subtitle = f"\n<p>{_escape(one_line(self._subtitle))}</p>" if self._subtitle.strip() else ""
        body = "\n".join([*self._parts, "</section>"] if self._sections else self._parts)
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
            f"<body>\n<main>\n<header>\n<h1>{title}</h1>{subtitle}\n</header>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def save(self, path: Path) -> None:
        """Write the document as UTF-8, whole or not at all.

        Raises:
            OpqnError: the disk is full or the place cannot be written; an older file is unchanged.
        """
        atomic_write_bytes(path, self.render().encode())


def percent(fraction: float | None) -> str | None:
    """Write a fraction such as a mAP as per cent with one decimal: 0.7234 becomes ``72.3 %``; None stays None."""
    return None if fraction is None else f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def _escape(text: str) -> str:
    return html.escape(clean(text))


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", clean(text).strip()) if part]


def _is_number(value: Cell) -> bool:
    return bool(_NUMBER_START.match(value)) if isinstance(value, str) else not isinstance(value, bool)


def _cell_text(value: Cell) -> str:
    match value:
        case None:
            return _NO_VALUE
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


def _cell(value: Cell, *, heading: bool, number: bool, best: bool) -> str:
    text = _escape(one_line(_cell_text(value)))
    text = f"<strong>{text}</strong>" if best else text
    style = _css_class(number=number, best=best)
    return f'<th scope="row"{style}>{text}</th>' if heading else f"<td{style}>{text}</td>"


def _css_class(**wanted: bool) -> str:
    names = " ".join(name for name, on in wanted.items() if on)
    return f' class="{names}"' if names else ""


def _data_uri(picture: bytes | Image.Image) -> str:
    if isinstance(picture, bytes):
        if b"<svg" not in picture[:2000]:
            raise ConfigError("a figure given as bytes must be an SVG document; give other pictures as PIL images")
        return "data:image/svg+xml;base64," + base64.b64encode(picture).decode()
    rgba = picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    buffer = io.BytesIO()
    flat.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)  # full colour resolution: frames stay sharp
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
