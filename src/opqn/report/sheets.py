"""Contact sheets: queries on the left, what was found for each on the right, right and wrong marked.

Drawn with Pillow and its built-in font alone. That font knows basic Latin: accents it lacks are left off ("Zoë" is
drawn "Zoe"), and letters of other scripts appear as boxes.
"""

from __future__ import annotations

import os
import struct
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from PIL import Image, ImageDraw, ImageFont, ImageOps

from opqn.errors import ConfigError
from opqn.report._text import one_line

ImageSource = Image.Image | str | os.PathLike[str]
Truth = Literal["right", "wrong", "unknown"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Color = tuple[int, int, int]

MAX_SIDE: Final = 8000  # px of a sheet; an uncompressed sheet then stays below 200 MB
MIN_TILE: Final = 48
MAX_TILE: Final = 256
MAX_SOURCE_PIXELS: Final = 50_000_000  # larger pictures are shown as unreadable rather than decoded

# The luminances differ as well as the hues, and every frame also carries a mark.
FRAME_COLORS: Final[dict[Truth, Color]] = {"right": (16, 133, 84), "wrong": (205, 55, 42), "unknown": (128, 134, 141)}
QUERY_COLOR: Final[Color] = (45, 51, 59)
_LEGEND: Final[dict[Truth, str]] = {"right": "same person", "wrong": "another person", "unknown": "not known"}
_PAPER: Final[Color] = (255, 255, 255)
_INK: Final[Color] = (31, 35, 40)
_FAINT_INK: Final[Color] = (89, 96, 104)
_UNREADABLE: Final[Color] = (214, 217, 221)
_STROKES: Final[dict[Truth, tuple[tuple[tuple[float, float], ...], ...]]] = {
    "right": (((0.2, 0.52), (0.42, 0.74), (0.8, 0.28)),),
    "wrong": (((0.26, 0.26), (0.74, 0.74)), ((0.74, 0.26), (0.26, 0.74))),
    "unknown": (),
}
_SMOOTH: Final = 4  # marks are drawn this many times larger and then reduced: Pillow's lines have jagged edges
# What Pillow's decoders raise on broken files; wrong types of argument are not among them and still surface.
_DECODER_ERRORS: Final = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_MAX_LABEL: Final = 200  # characters looked at before a name is cut to the width of its tile


@dataclass(frozen=True)
class Hit:
    """One picture found.

    Attributes:
        image: a picture or the path of one.
        label: the person's name; None when nobody named the picture.
        score: what the ranking was by, higher is better; None where there is no ranking.
        is_right: the hit shows the query's person; None when the truth is not known.
    """

    image: ImageSource
    label: str | None
    score: float | None
    is_right: bool | None


@dataclass(frozen=True)
class SheetRow:
    """One query and its hits, best first.

    Attributes:
        query: a picture or the path of one.
        query_label: the person's name; None when it is not known.
        hits: drawn in this order with ranks 1, 2, ...; rows may differ in length.
    """

    query: ImageSource
    query_label: str | None
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class _Layout:
    """Where things stand, in pixels. A cell is a framed tile with two lines of text under it."""

    tile: int
    columns: int
    rows: int

    @property
    def frame(self) -> int:
        return max(3, self.tile // 24)

    @property
    def font_size(self) -> int:
        return max(10, self.tile // 8)

    @property
    def gap(self) -> int:
        return max(8, self.tile // 10)

    @property
    def margin(self) -> int:
        return 2 * self.gap

    @property
    def line(self) -> int:
        return self.font_size + self.font_size // 3

    @property
    def framed(self) -> int:
        return self.tile + 2 * self.frame

    @property
    def header(self) -> int:
        return self.margin + 4 * self.line

    @property
    def row_height(self) -> int:
        return self.framed + 2 * self.line + self.margin

    @property
    def separator(self) -> int:
        """Where the rule between queries and hits stands."""
        return self.margin + self.framed + self.margin

    @property
    def size(self) -> tuple[int, int]:
        width = self.separator + self.margin + self.columns * (self.framed + self.gap) - self.gap + self.margin
        return width, self.header + self.rows * self.row_height

    def corner(self, row: int, rank: int) -> tuple[int, int]:
        """Return the top left corner of a cell's frame; rank 0 is the query."""
        x = self.margin if rank == 0 else self.separator + self.margin + (rank - 1) * (self.framed + self.gap)
        return x, self.header + row * self.row_height


def contact_sheet(rows: Sequence[SheetRow], *, tile: int = 96, title: str = "Queries and their hits") -> Image.Image:
    """Draw queries and their hits, best hit first from left to right.

    Each hit is framed green (same person), red (another person) or grey (truth not known), with a tick, a cross or a
    question mark in the corner; under it stand the name, cut to fit, then rank and score. A picture that cannot be read
    becomes a grey tile with a cross. Pictures keep their shape and are padded to a square.

    Args:
        rows: at least one.
        tile: side of a picture on the sheet in pixels, 48..256.
        title: the line above the sheet, cut to fit.

    Returns:
        An RGB picture, neither side above 8000 pixels (at ``tile`` 96 about 50 rows of 70 hits).

    Raises:
        ConfigError: no rows, a tile size outside its limits, or more rows or hits than fit.
    """
    if not rows:
        raise ConfigError("a contact sheet needs at least one row; give the queries to show")
    if not MIN_TILE <= tile <= MAX_TILE:
        raise ConfigError(f"tile is {tile}; it must lie in {MIN_TILE}..{MAX_TILE} pixels")
    layout = _Layout(tile, max(1, *(len(row.hits) for row in rows)), len(rows))
    legend_width = 2 * layout.margin + _draw_legend(None, layout, (0, 0))
    width, height = max(layout.size[0], legend_width), layout.size[1]
    if max(width, height) > MAX_SIDE:
        raise ConfigError(
            f"a sheet of {layout.rows} rows and up to {layout.columns} hits would be {width} x {height} pixels; the "
            f"limit is {MAX_SIDE} on each side: show fewer rows or hits, or lower tile (now {tile})"
        )
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_text(draw, (layout.margin, layout.margin), title, layout.font_size * 4 // 3, width - 2 * layout.margin)
    _draw_legend(sheet, layout, (layout.margin, layout.margin + 2 * layout.line))
    for number, row in enumerate(rows):
        _draw_row(sheet, draw, layout, number, row)
    return sheet


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, layout: _Layout, number: int, row: SheetRow) -> None:
    x, y = layout.corner(number, 0)
    _draw_cell(sheet, draw, layout, (x, y), row.query, QUERY_COLOR)
    _draw_caption(draw, layout, (x, y), row.query_label, "query")
    draw.line((layout.separator, y, layout.separator, y + layout.framed - 1), fill=_UNREADABLE)
    if not row.hits:
        x, y = layout.corner(number, 1)
        _draw_text(draw, (x, y + layout.framed // 2), "no hits", layout.font_size, layout.framed, _FAINT_INK)
    for rank, hit in enumerate(row.hits, start=1):
        truth: Truth = "unknown" if hit.is_right is None else "right" if hit.is_right else "wrong"
        corner = layout.corner(number, rank)
        _draw_cell(sheet, draw, layout, corner, hit.image, FRAME_COLORS[truth])
        sheet.paste(_badge(layout.font_size + 2 * layout.frame, truth), corner)
        _draw_caption(draw, layout, corner, hit.label, "" if hit.score is None else f"#{rank} {hit.score:.3f}")


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    layout: _Layout,
    corner: tuple[int, int],
    source: ImageSource,
    color: Color,
) -> None:
    x, y = corner
    draw.rectangle((x, y, x + layout.framed - 1, y + layout.framed - 1), fill=color)
    sheet.paste(_tile(source, layout), (x + layout.frame, y + layout.frame))


def _draw_caption(
    draw: ImageDraw.ImageDraw, layout: _Layout, corner: tuple[int, int], label: str | None, detail: str
) -> None:
    x, y = corner[0], corner[1] + layout.framed + layout.line // 4
    name, color = ("no name", _FAINT_INK) if label is None else (label, _INK)
    _draw_text(draw, (x, y), name, layout.font_size, layout.framed, color)
    _draw_text(draw, (x, y + layout.line), detail, layout.font_size, layout.framed, _FAINT_INK)


def _draw_legend(sheet: Image.Image | None, layout: _Layout, corner: tuple[int, int]) -> int:
    """Return the legend's width in pixels, and draw it if given something to draw on."""
    x, y = corner
    side, font = layout.line, _font(layout.font_size)
    for truth, text in _LEGEND.items():
        if sheet is not None:
            sheet.paste(_badge(side, truth), (x, y))
            middle = (x + side + layout.gap // 2, y + side // 2)
            ImageDraw.Draw(sheet).text(middle, text, _FAINT_INK, font, anchor="lm")
        x += side + layout.gap // 2 + round(font.getlength(text)) + layout.margin
    return x - layout.margin - corner[0]


@lru_cache
def _badge(side: int, truth: Truth) -> Image.Image:
    """Draw a tick, a cross or a question mark; as shapes, because the font has neither of the first two."""
    large = side * _SMOOTH
    image = Image.new("RGB", (large, large), FRAME_COLORS[truth])
    draw = ImageDraw.Draw(image)
    for stroke in _STROKES[truth]:
        draw.line([(large * x, large * y) for x, y in stroke], fill=_PAPER, width=large // 8, joint="curve")
    if truth == "unknown":
        draw.text((large / 2, large / 2), "?", _PAPER, _font(large * 3 // 4), anchor="mm")
    return image.resize((side, side), Image.Resampling.BOX)


def _draw_text(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, width: int, color: Color = _INK
) -> None:
    font = _font(size)
    draw.text(corner, _shorten(_drawable(text), font.getlength, width), color, font)


def _shorten(text: str, length: Callable[[str], float], width: int) -> str:
    if length(text) <= width:
        return text
    while text and length(text + "…") > width:
        text = text[:-1].rstrip()
    return text + "…"


@lru_cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _drawable(text: str) -> str:
    """Leave off the accents that the built-in font lacks."""
    text = unicodedata.normalize("NFC", one_line(text)[:_MAX_LABEL])
    return "".join(char if _has_glyph(char) else _without_accents(char) for char in text)


def _without_accents(char: str) -> str:
    bare = "".join(part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part))
    return bare if bare and all(_has_glyph(part) for part in bare) else char


@lru_cache(maxsize=4096)
def _has_glyph(char: str) -> bool:
    font = _font(16)
    return char.isspace() or bytes(font.getmask(char)) != bytes(font.getmask("\N{REPLACEMENT CHARACTER}"))


def _tile(source: ImageSource, layout: _Layout) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return _square(source, layout.tile)
        with Image.open(source) as image:
            _check_size(image)
            image.draft(None, (2 * layout.tile, 2 * layout.tile))  # a JPEG is decoded no larger than needed
            return _square(image, layout.tile)
    except _DECODER_ERRORS:
        return _unreadable(layout)


def _check_size(image: Image.Image) -> None:
    if not 0 < image.width * image.height <= MAX_SOURCE_PIXELS:
        raise ValueError(f"a picture of {image.width} x {image.height} pixels cannot be shown")


def _square(image: Image.Image, side: int) -> Image.Image:
    _check_size(image)
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    scale = side / max(upright.size)
    # At least one pixel: ImageOps.pad would make nothing of a very thin picture.
    size = max(1, round(upright.width * scale)), max(1, round(upright.height * scale))
    small = upright.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    square = Image.new("RGB", (side, side), _PAPER)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2), small)
    return square


def _unreadable(layout: _Layout) -> Image.Image:
    side = layout.tile
    image = Image.new("RGB", (side, side), _UNREADABLE)
    draw = ImageDraw.Draw(image)
    arm, center = side // 6, (side // 2, side * 2 // 5)
    for slope in (-1, 1):
        ends = [(center[0] - arm, center[1] - slope * arm), (center[0] + arm, center[1] + slope * arm)]
        draw.line(ends, fill=_FAINT_INK, width=layout.frame)
    font = _font(layout.font_size if side >= 80 else 9)
    draw.text((side / 2, side * 0.75), "unreadable", _FAINT_INK, font, anchor="mm")
    return image
