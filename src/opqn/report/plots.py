"""Charts as bytes, for pages and pull requests. The same numbers give the same bytes.

Every SVG is self-contained: letters are drawn as paths, and title and description name what the chart shows. Colours
are those of Okabe and Ito, which colour-blind readers tell apart, and lines differ in style as well.

matplotlib's settings are swapped while a chart is drawn and put back afterwards, so draw from one thread at a time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opqn.errors import ConfigError, OpqnError
from opqn.report._text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]

_COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: Final = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
MAX_CURVES: Final = len(_COLORS) * len(_STYLES)  # 28: no two curves look the same
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # nine, so that colour and marker repeat after 63
_THICK: Final = 3.2  # points of width of a line to stand out
_THIN: Final = 1.2  # of the lines beside it
_GREY: Final = "#59606a"
_DODGE: Final = 0.25  # share of the space between two code lengths over which the points of one are spread
_SETTINGS: Final[dict[str, Any]] = {
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#59606a",
    "axes.labelcolor": "#1f2328",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "xtick.color": "#59606a",
    "ytick.color": "#59606a",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "text.parse_math": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "opqn",
}
_ROUNDING: Final = 1e-6  # by which a mean of float32 fractions may leave 0..1
_PNG_DPI: Final = 160
_MAX_LABEL: Final = 40  # characters of a label before it is cut
_LOSS_PARTS: Final = (("loss", "total"), ("original", "original"), ("quantized", "quantized"), ("entropy", "entropy"))


def precision_recall_svg(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str = "Precision against recall",
    *,
    thick: Collection[str] = (),
) -> bytes:
    """Draw precision over recall, one line a method.

    Args:
        curves: name to (recall, precision), two arrays of equal length in 0..1; the legend keeps this order.
        title: the line above the chart.
        thick: names of the curves that are to stand out among many; the others are then drawn thin.

    Returns:
        An SVG document.

    Raises:
        ConfigError: no curve, more than 28, or arrays that are not such a pair.
        OpqnError: matplotlib is not installed.
    """
    return _curves(curves, title, ("recall", "precision"), _whole_range, "svg", thick)


def precision_recall_png(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str = "Precision against recall",
    *,
    thick: Collection[str] = (),
) -> bytes:
    """Draw the chart of :func:`precision_recall_svg` as PNG, 1024 pixels wide."""
    return _curves(curves, title, ("recall", "precision"), _whole_range, "png", thick)


def map_over_bits_svg(
    lines: Mapping[str, tuple[Sequence[int], ArrayLike, ArrayLike]],
    title: str = "mAP over code length",
    *,
    thick: Collection[str] = (),
    yardsticks: Collection[str] = (),
) -> bytes:
    """Draw mAP over the length of a code, one line a method, with error bars.

    Lengths stand at equal distances. The points of one length are set a little apart from each other, in the order
    of the legend, so that error bars do not cover each other. The vertical axis need not begin at 0.

    Args:
        lines: name to (bits, mAP, deviation), three of equal length: the lengths of code that were measured, each
            once, the mAP at each in 0..1, and how far its error bar goes up and down, 0 for no bar. Lengths may
            differ from line to line; the legend keeps this order.
        title: the line above the chart.
        thick: names of the lines that are to stand out among many; the others are then drawn thin.
        yardsticks: names of the lines that are no rivals, such as uncompressed features; drawn grey and dotted.

    Returns:
        An SVG document.

    Raises:
        ConfigError: no line, more than 28, or values that are not such a triple.
        OpqnError: matplotlib is not installed.
    """
    if not 1 <= len(lines) <= MAX_CURVES:
        raise ConfigError(f"{len(lines)} lines were given; a readable chart has 1 to {MAX_CURVES}")
    checked = {name: _measured(name, *line) for name, line in lines.items()}
    lengths = sorted({length for bits, _, _ in checked.values() for length in bits})
    with _settings():
        labels = [_drawable(name) for name in checked]
        figure = _figure(4.8 + 0.2 * -(-len(labels) // _legend_columns(labels)))
        axes = figure.subplots()
        handles = []
        for number, (name, (bits, means, deviations)) in enumerate(checked.items()):
            apart = _DODGE * ((number + 0.5) / len(checked) - 0.5)
            look = _look_of_line(number, is_thick=name in thick, is_yardstick=name in yardsticks, are_some=bool(thick))
            places = np.array([lengths.index(length) for length in bits]) + apart
            (line,) = axes.plot(places, means, **look)
            barred = deviations > 0
            axes.errorbar(
                places[barred],
                means[barred],
                deviations[barred],
                fmt="none",
                ecolor=look["color"],
                elinewidth=look["linewidth"] / 2 + 0.3,
                capsize=2,
                zorder=look["zorder"],
            )
            handles.append(line)
        axes.set(xlabel="bits a face", ylabel="mAP", xlim=(-0.5, len(lengths) - 0.5))
        axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        axes.grid(visible=False, axis="x")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), high)
        axes.set_title(_drawable(title))
        figure.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(labels))
        shown = ", ".join(one_line(name) for name in checked)
        return _save(figure, title, f"mAP at {', '.join(map(str, lengths))} bits: {shown}", "svg")


def detection_error_svg(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str = "Strangers named against people missed"
) -> bytes:
    """Draw open-set identification: the people missed (FNIR) over the strangers named (FPIR), one line a method.

    Both axes are logarithmic, as in NIST's reports, and further down is better. A rate of 0 lies below the chart.

    Args:
        curves: name to (fpir, fnir), as in :class:`opqn.open_set.IdentificationReport`; the legend keeps this order.
        title: the line above the chart.

    Returns:
        An SVG document.

    Raises:
        ConfigError: no curve, more than 28, or arrays that are not such a pair.
        OpqnError: matplotlib is not installed.
    """
    return _curves(curves, title, ("FPIR: strangers named", "FNIR: people missed"), _log_error, "svg")


def verification_svg(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str = "True matches against false matches"
) -> bytes:
    """Draw verification, the ROC: true matches (TMR) over false matches (FMR), one line a method.

    The horizontal axis is logarithmic; the vertical one begins at the tenth below the lowest point.

    Args:
        curves: name to (fmr, tmr), as in :class:`opqn.open_set.VerificationReport`; the legend keeps this order.
        title: the line above the chart.

    Returns:
        An SVG document.

    Raises:
        ConfigError: no curve, more than 28, or arrays that are not such a pair.
        OpqnError: matplotlib is not installed.
    """
    return _curves(curves, title, ("FMR: false matches", "TMR: true matches"), _log_rate, "svg")


def training_curve(history: Sequence[Mapping[str, float | None]], title: str = "Training") -> bytes:
    """Draw a training: loss parts, validation mAP and learning rate over the epochs.

    Args:
        history: one mapping an epoch with ``epoch``, ``loss``, ``original``, ``quantized``, ``entropy`` and
            ``learning_rate``; ``validation_map`` (0..1) may be None or missing, and without any its panel is left out.
            Other keys are ignored.
        title: the line above the chart.

    Returns:
        An SVG document.

    Raises:
        ConfigError: the history is empty or a key is missing.
        OpqnError: matplotlib is not installed.
    """
    if not history:
        raise ConfigError("the history is empty; train for at least one epoch before drawing it")
    epochs = _column(history, "epoch")
    losses = {label: _column(history, key) for key, label in _LOSS_PARTS}
    rates = _column(history, "learning_rate")
    validation = np.array([np.nan if (value := row.get("validation_map")) is None else value for row in history], float)
    measured = np.isfinite(validation)
    heights = [2.6, 1.9, 0.9] if measured.any() else [2.6, 0.9]
    with _settings():
        figure = _figure(sum(heights) + 0.9)
        panels: list[Axes] = list(
            figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        )
        for number, (label, values) in enumerate(losses.items()):
            panels[0].plot(
                epochs, values, color=_COLORS[number], linestyle=_STYLES[number], label=label, **_dots(epochs)
            )
        panels[0].set_title(_drawable(title), pad=30)
        panels[0].set_ylabel("loss")
        panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, borderpad=0, ncols=4)
        if measured.any():
            panels[1].plot(epochs[measured], 100 * validation[measured], color=_COLORS[0], marker="o", markersize=3.5)
            panels[1].set_ylabel("validation\nmAP (%)")
        panels[-1].plot(epochs, rates, color="#59606a", drawstyle="steps-post", **_dots(epochs))
        panels[-1].set_ylabel("learning\nrate")
        panels[-1].set_ylim(bottom=0)
        panels[-1].set_xlabel("epoch")
        panels[-1].locator_params(axis="x", integer=True)
        panels[-1].locator_params(axis="y", nbins=3)
        figure.align_ylabels()
        shown = [*losses, "validation mAP", "learning rate"] if measured.any() else [*losses, "learning rate"]
        return _save(figure, title, f"Over {len(history)} epochs: {', '.join(shown)}", "svg")


def codeword_use(used_words: Sequence[int], num_words: int, title: str = "Codewords in use") -> bytes:
    """Draw how many words of each codebook at least one item uses.

    Args:
        used_words: a count for each of the M books, 0..K.
        num_words: K.
        title: the line above the chart.

    Returns:
        An SVG document.

    Raises:
        ConfigError: no book, no word, or a count outside 0..K.
        OpqnError: matplotlib is not installed.
    """
    if not len(used_words) or num_words < 1:
        raise ConfigError(
            f"codeword use needs a count for each codebook and at least one word; it was given {len(used_words)} "
            f"counts and num_words {num_words}"
        )
    for book, used in enumerate(used_words):
        if not 0 <= used <= num_words:
            raise ConfigError(
                f"book {book} is said to use {used} words; a count must lie in 0..{num_words} (num_words)"
            )
    books = list(range(len(used_words)))
    with _settings():
        figure = _figure(3.1)
        axes = figure.subplots()
        whole = axes.bar(books, [num_words] * len(books), width=0.66, color="#dfe5ec")
        axes.bar(books, used_words, width=0.66, color=_COLORS[0])
        if len(books) <= 16:
            axes.bar_label(whole, [str(used) for used in used_words], padding=2, color="#1f2328")
        axes.set_title(_drawable(title))
        axes.set_xlabel("codebook")
        axes.set_ylabel(f"words used of {num_words}")
        axes.set_ylim(0, num_words * 1.12)
        axes.set_yticks(range(0, num_words + 1, max(1, num_words // 4)))
        axes.grid(visible=False)
        axes.locator_params(axis="x", integer=True)
        counts = ", ".join(f"book {book}: {used}" for book, used in enumerate(used_words))
        return _save(figure, title, f"Words used of {num_words}. {counts}", "svg")


def _curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str,
    names: tuple[str, str],
    set_range: Callable[[Axes, Sequence[_Curve]], None],
    file_format: str,
    thick: Collection[str] = (),
) -> bytes:
    """Draw lines over two axes of these names, whose range and scale ``set_range`` sets."""
    if not 1 <= len(curves) <= MAX_CURVES:
        raise ConfigError(f"{len(curves)} curves were given; a readable chart has 1 to {MAX_CURVES}")
    short = tuple(name.partition(":")[0] for name in names)
    checked = {name: _curve(name, pair, short) for name, pair in curves.items()}
    with _settings():
        labels = [_drawable(name) for name in checked]
        columns = _legend_columns(labels)
        figure = _figure(4.2 + 0.2 * -(-len(labels) // columns))
        axes = figure.subplots()
        lines = [
            axes.plot(
                across,
                up,
                color=_COLORS[number % len(_COLORS)],
                linestyle=_STYLES[(number % len(_COLORS) + number // len(_COLORS)) % len(_STYLES)],
                **(_weight(is_thick=name in thick) if thick else {}),
            )[0]
            for number, (name, (across, up)) in enumerate(checked.items())
        ]
        axes.set(xlabel=names[0], ylabel=names[1])
        set_range(axes, list(checked.values()))
        axes.set_title(_drawable(title))
        figure.legend(lines, labels, loc="outside lower center", ncols=columns)
        return _save(figure, title, f"Curves: {', '.join(one_line(name) for name in checked)}", file_format)


def _legend_columns(labels: Sequence[str]) -> int:
    return 2 if max(map(len, labels)) <= 26 else 1


def _weight(*, is_thick: bool) -> dict[str, Any]:
    """Return width and order of drawing of a line beside others that are thicker or thinner."""
    return {"linewidth": _THICK, "zorder": 3} if is_thick else {"linewidth": _THIN, "zorder": 2}


def _look_of_line(number: int, *, is_thick: bool, is_yardstick: bool, are_some: bool) -> dict[str, Any]:
    """Return how the line of this number looks; ``are_some`` says whether any line is to stand out."""
    weight = _weight(is_thick=is_thick) if are_some else {"linewidth": 1.8, "zorder": 2}
    if is_yardstick:
        return {"color": _GREY, "linestyle": _STYLES[2], **weight}
    return {
        "color": _COLORS[number % len(_COLORS)],
        "linestyle": _STYLES[number // len(_COLORS) % len(_STYLES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 8 if is_thick else 5.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        **weight,
    }


def _measured(
    name: str, bits: Sequence[int], means: ArrayLike, deviations: ArrayLike
) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """Check a line of mAP over bits, and sort it by length."""
    lengths = np.asarray(bits)
    values, bars = np.asarray(means, np.float64), np.asarray(deviations, np.float64)
    if lengths.ndim != 1 or not lengths.size or lengths.dtype.kind not in "iu" or len(set(bits)) != lengths.size:
        raise ConfigError(
            f"line {name!r} has bits {list(bits)}; give at least one length, each a whole number and once"
        )
    if values.shape != lengths.shape or bars.shape != lengths.shape:
        raise ConfigError(
            f"line {name!r} has {lengths.size} lengths, mAP of shape {values.shape} and deviations of shape "
            f"{bars.shape}; give one of each for every length"
        )
    if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all() or not ((bars >= 0) & (bars < np.inf)).all():
        raise ConfigError(f"line {name!r} has mAP outside 0..1 or a deviation below 0; give fractions, without NaN")
    order = np.argsort(lengths)
    return lengths[order].tolist(), values[order], bars[order]


def _whole_range(axes: Axes, _: Sequence[_Curve]) -> None:
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02))


def _log_error(axes: Axes, curves: Sequence[_Curve]) -> None:
    axes.set(xlim=(_least([across for across, _ in curves]), 1), ylim=(0.8 * _least([up for _, up in curves]), 1.05))
    axes.set(xscale="log", yscale="log")  # after the range: matplotlib finds none where all rates are 0
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)


def _log_rate(axes: Axes, curves: Sequence[_Curve]) -> None:
    lowest = min(float(up.min()) for _, up in curves)
    axes.set(xlim=(_least([across for across, _ in curves]), 1))
    axes.set(ylim=(min(max(np.floor(10 * lowest) / 10, 0.0), 0.9), 1.005))
    axes.set(xscale="log")
    _plain_numbers(axes.xaxis)


def _least(values: Sequence[NDArray[np.float64]]) -> float:
    """Return the least number above 0, at most 0.5, for the end of a logarithmic axis that goes up to 1."""
    every = np.concatenate(values)
    return float(every[every > 0].min(initial=0.5))


def _plain_numbers(axis: Axis) -> None:
    """Write 0.01, and nothing between powers of ten unless there is but one power."""
    from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: PLC0415

    low, high = axis.get_view_interval()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(NullFormatter() if high / low > 10 else plain)


def _curve(name: str, pair: tuple[ArrayLike, ArrayLike], names: tuple[str, ...]) -> _Curve:
    checked = np.asarray(pair[0], np.float64), np.asarray(pair[1], np.float64)
    if checked[0].ndim != 1 or checked[0].shape != checked[1].shape or not checked[0].size:
        raise ConfigError(
            f"curve {name!r} has {names[0]} of shape {checked[0].shape} and {names[1]} of shape {checked[1].shape}; "
            "give two one-dimensional arrays of the same length"
        )
    if not all(((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all() for values in checked):
        raise ConfigError(f"curve {name!r} leaves 0..1; give {names[0]} and {names[1]} as fractions, without NaN")
    return checked


def _column(history: Sequence[Mapping[str, float | None]], key: str) -> NDArray[np.float64]:
    values = [row.get(key) for row in history]
    if None in values:
        raise ConfigError(f"entry {values.index(None)} of the history has no {key!r}; every epoch must give one")
    return np.array(values, np.float64)


def _dots(epochs: NDArray[np.float64]) -> dict[str, Any]:
    """Mark single epochs where a line would be too short to see."""
    return {"marker": "o", "markersize": 3.5} if len(epochs) < 4 else {}


@contextmanager
def _settings() -> Iterator[None]:
    try:
        from matplotlib import style  # noqa: PLC0415
    except ImportError as error:
        raise OpqnError("charts need matplotlib; run: pip install 'opqn[bench]'") from error
    # "default" first: a reader's own matplotlibrc must not change the result.
    with style.context(["default", _SETTINGS]):
        yield


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=(6.4, height), layout="constrained")


def _drawable(text: str) -> str:
    """Cut a label and replace letters that the font lacks, which matplotlib would warn about one by one."""
    text = one_line(text)
    text = text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1].rstrip() + "…"
    return "".join(char if ord(char) in _glyphs() else "\N{WHITE SQUARE}" for char in text)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font  # noqa: PLC0415

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _save(figure: Figure, title: str, description: str, file_format: str) -> bytes:
    buffer = io.BytesIO()
    if file_format == "png":
        figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    else:
        facts = {"Date": None, "Creator": None, "Title": one_line(title), "Description": description}
        figure.savefig(buffer, format="svg", metadata=facts)
    return buffer.getvalue()
