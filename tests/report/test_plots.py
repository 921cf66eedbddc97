"""Charts: what they say, that they are well-formed and self-contained, and that nothing random is in them."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from opqn.errors import ConfigError, OpqnError
from opqn.report.plots import (
    MAX_CURVES,
    codeword_use,
    detection_error_svg,
    map_over_bits_svg,
    precision_recall_png,
    precision_recall_svg,
    training_curve,
    verification_svg,
)

SVG = "{http://www.w3.org/2000/svg}"
RECALL = np.linspace(0, 1, 50)
RATES = np.logspace(-3, 0, 61)
ERRORS = {"OPQN": (RATES, 0.02 / RATES**0.5 / 2), "FAISS <OPQ> & co": (RATES, 0.03 / RATES**0.5)}
CURVES = {"OPQN": (RECALL, 1 - RECALL / 4), "FAISS <OPQ> & co": (RECALL, 1 - RECALL / 2)}
LENGTHS = [24, 36, 64]
LINES = {"OPQN": (LENGTHS, [0.3, 0.4, 0.5], [0.01, 0.02, 0.01]), "<b> & co": (LENGTHS, [0.2, 0.3, 0.3], [0, 0, 0])}


def epoch(number, **changes):
    row = {"epoch": number, "loss": 9.0 / number, "original": 8.0 / number, "quantized": 9.5 / number, "entropy": 0.5}
    return row | {"learning_rate": 0.1, "validation_map": None, "images_per_second": 200.0} | changes


def texts(svg):
    """Return what is drawn as letters (matplotlib notes it in a comment beside the paths), title and description."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    root = ET.fromstring(svg, parser=parser)
    comments = [node.text.strip() for node in root.iter() if node.tag is ET.Comment]
    title = root.findtext(f"{SVG}title")
    description = next(
        node.text for node in root.iter() if node.tag.__class__ is str and node.tag.endswith("description")
    )
    return comments, title, description


def lines(svg):
    """Return colour and dashes of every curve inside the axes."""
    found = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="([^"]*)"', svg.decode())
    facts = [(re.search(r"stroke: (#\w+)", s)[1], re.search(r"stroke-dasharray: ([\d., ]+)", s)) for s in found]
    return [(color, dashes and dashes[1]) for color, dashes in facts if color != "#e3e6ea"]


def test_a_precision_recall_chart_names_every_curve_and_both_axes():
    comments, title, description = texts(precision_recall_svg(CURVES, "Unseen, 48 bits"))
    assert {"OPQN", "FAISS <OPQ> & co", "recall", "precision", "Unseen, 48 bits"} <= {
        text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for text in comments
    }
    assert title == "Unseen, 48 bits"
    assert description == "Curves: OPQN, FAISS <OPQ> & co"


def test_no_two_curves_look_the_same():
    svg = precision_recall_svg({f"m{i}": (RECALL, 1 - RECALL * i / MAX_CURVES) for i in range(MAX_CURVES)})
    assert len(lines(svg)) == len(set(lines(svg))) == MAX_CURVES


@pytest.mark.parametrize(
    "chart",
    [
        lambda: precision_recall_svg(CURVES),
        lambda: detection_error_svg(ERRORS),
        lambda: verification_svg(ERRORS),
        lambda: map_over_bits_svg(LINES),
        lambda: training_curve([epoch(1), epoch(2, validation_map=0.4)]),
        lambda: codeword_use([3, 4], 4),
    ],
)
def test_an_svg_refers_to_nothing_outside_itself_and_has_no_script_and_no_date(chart):
    svg = chart()
    root = ET.fromstring(svg)
    links = [value for node in root.iter() for name, value in node.attrib.items() if name.endswith(("href", "src"))]
    assert links
    assert all(link.startswith("#") for link in links if "purl.org" not in link)
    assert not [node for node in root.iter() if node.tag.endswith(("script", "image", "foreignObject", "date"))]
    assert not root.findall(f".//{SVG}text")
    assert not re.search(rb"url\((?!#)|@import|@font-face", svg)
    assert chart() == svg


def test_another_process_draws_the_same_bytes():
    code = "from opqn.report.plots import codeword_use; import sys; sys.stdout.buffer.write(codeword_use([3, 4], 4))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "7"},
    )
    assert run.stdout == codeword_use([3, 4], 4)


def test_the_png_is_a_picture_of_the_promised_width():
    png = precision_recall_png(CURVES)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.width == 1024
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert png == precision_recall_png(CURVES)


@pytest.mark.parametrize(
    "name", ["$x_1$", "$", "_hidden", "人脸", "a\x00b", "lone \ud800", "", "x" * 500, "two\nlines"]
)
def test_any_name_can_be_a_label(name):
    svg = precision_recall_svg({name: CURVES["OPQN"], "other": CURVES["OPQN"]}, name)
    comments, _, _ = texts(svg)
    assert "other" in comments
    assert len(lines(svg)) == 2


def test_dollar_signs_are_text_and_not_formulas():
    svg = precision_recall_svg({"$x_1$": CURVES["OPQN"]}).decode()
    (drawn,) = re.findall(r"<!-- \$x_1\$ -->\s*<g(.*?)</g>", svg, re.DOTALL)
    assert drawn.count("<use ") == len("$x_1$")


def test_readers_settings_neither_change_a_chart_nor_are_changed_by_it():
    expected = precision_recall_svg(CURVES)
    with mpl.rc_context({"axes.facecolor": "black", "lines.linewidth": 9, "font.size": 30, "svg.hashsalt": None}):
        before = dict(mpl.rcParams)
        assert precision_recall_svg(CURVES) == expected
        assert dict(mpl.rcParams) == before


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys; from opqn.report.plots import training_curve as t;"
        "row = dict.fromkeys(('epoch', 'loss', 'original', 'quantized', 'entropy', 'learning_rate'), 1.0);"
        "assert 'matplotlib' not in sys.modules; t([row]);"
        "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": paths})


@pytest.mark.parametrize(
    ("recall", "precision"),
    [([], []), ([0, 1], [1]), ([[0, 1]], [[1, 0]]), ([0, 1], [1, np.nan]), ([0, 1.1], [1, 0]), ([0, 1], [-0.1, 0])],
)
def test_what_is_no_curve_is_refused_by_name(recall, precision):
    with pytest.raises(ConfigError, match="'bad'"):
        precision_recall_svg({"good": CURVES["OPQN"], "bad": (recall, precision)})


def test_rounding_above_one_is_no_reason_to_refuse_a_curve():
    assert precision_recall_svg({"a": (RECALL, np.full(50, 1 + 1e-7))})


@pytest.mark.parametrize("count", [0, MAX_CURVES + 1])
def test_the_number_of_curves_is_bounded(count):
    with pytest.raises(ConfigError, match=f"1 to {MAX_CURVES}"):
        precision_recall_svg({str(i): CURVES["OPQN"] for i in range(count)})


def widths(svg):
    """Return the width of every curve inside the axes."""
    found = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="([^"]*)"', svg.decode())
    return [float(re.search(r"stroke-width: ([\d.]+)", style)[1]) for style in found if "#e3e6ea" not in style]


def test_thick_curves_stand_out_and_look_otherwise_as_they_do_alone():
    plain, told = precision_recall_svg(CURVES), precision_recall_svg(CURVES, thick=["OPQN", "a name without a curve"])
    assert {color for color, _ in lines(told)} == {color for color, _ in lines(plain)}
    assert set(widths(plain)) == {1.8}
    by_color = {color: width for (color, _), width in zip(lines(told), widths(told), strict=True)}
    assert by_color["#0072b2"] > 2 * by_color["#d55e00"]
    assert precision_recall_png(CURVES, thick=["OPQN"]) != precision_recall_png(CURVES)


def test_a_chart_of_map_names_its_lines_its_axes_and_the_lengths():
    comments, title, description = texts(map_over_bits_svg(LINES, "Unseen people"))
    assert {"OPQN", "bits a face", "mAP", "24", "36", "64", "Unseen people"} <= set(comments)
    assert title == "Unseen people"
    assert description == "mAP at 24, 36, 64 bits: OPQN, <b> & co"


def test_lengths_are_equally_far_apart_and_error_bars_are_to_scale():
    svg = map_over_bits_svg(LINES)
    at = next(path for path in points(svg) if len(path) == 3)
    assert np.diff(at[:, 0]) == pytest.approx([at[1, 0] - at[0, 0]] * 2, rel=1e-4)
    unit = (at[0, 1] - at[2, 1]) / 0.2
    assert at[0, 1] - at[1, 1] == pytest.approx(0.1 * unit, rel=1e-4)
    bars = [path for path in points(svg) if len(path) == 2 and path[0, 0] == path[1, 0]]
    assert [abs(bar[1, 1] - bar[0, 1]) / unit for bar in bars] == pytest.approx([0.02, 0.04, 0.02], rel=1e-3)
    assert [bar[0, 0] for bar in bars] == pytest.approx(at[:, 0], rel=1e-4)


def test_points_of_one_length_stand_beside_each_other_in_the_order_of_the_legend():
    many = {f"m{number}": ([24, 36], [0.5, 0.6], [0.1, 0.1]) for number in range(14)}
    curves = [path for path in points(map_over_bits_svg(many)) if len(path) == 2 and path[0, 0] != path[1, 0]]
    starts, ends = np.array([path[0, 0] for path in curves]), np.array([path[1, 0] for path in curves])
    assert len(curves) == 14
    assert (np.diff(starts) > 0).all()
    assert ends[0] > starts[-1]


def test_no_two_lines_of_map_look_the_same():
    svg = map_over_bits_svg({f"m{number}": ([8, 16], [0.5, 0.6], [0, 0]) for number in range(MAX_CURVES)})
    assert len(lines(svg)) == len(set(lines(svg))) == MAX_CURVES


def test_one_line_of_map_stands_out_and_a_yardstick_is_grey():
    given = {
        name: ([8, 16], means, [0, 0]) for name, means in (("a", [0.5, 0.6]), ("b", [0.4, 0.5]), ("full", [0.7] * 2))
    }
    svg = map_over_bits_svg(given, thick=["a"], yardsticks=["full"])
    by_color = {color: width for (color, _), width in zip(lines(svg), widths(svg), strict=True)}
    assert by_color.keys() == {"#0072b2", "#d55e00", "#59606a"}
    assert by_color["#0072b2"] > 2 * by_color["#d55e00"] == 2 * by_color["#59606a"]
    assert len(set(widths(map_over_bits_svg(given)))) == 1


def test_lines_of_map_may_differ_in_length_and_come_in_any_order():
    mixed = {"a": ([64, 24], [0.5, 0.3], [0.1, 0.2]), "b": ([36], [0.4], [0])}
    svg = map_over_bits_svg(mixed)
    assert texts(svg)[2] == "mAP at 24, 36, 64 bits: a, b"
    assert map_over_bits_svg({"a": ([24, 64], [0.3, 0.5], [0.2, 0.1]), "b": ([36], [0.4], [0])}) == svg


@pytest.mark.parametrize("line", [([24], [0.0], [0.0]), ([24], [1.0], [0.0]), ([24, 32], [0.001, 0.001], [0.5, 0])])
def test_map_at_the_ends_of_its_range_can_be_drawn(line):
    comments = texts(map_over_bits_svg({"a": line}))[0]
    assert not [text for text in comments if text.startswith("\N{MINUS SIGN}")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (([], [], []), "has bits"),
        (([24, 24], [0.1, 0.2], [0, 0]), "has bits"),
        (([24.5], [0.1], [0]), "has bits"),
        (([24], [0.1, 0.2], [0]), "1 lengths"),
        (([24], [0.1], [0, 0]), "1 lengths"),
        (([24], [1.1], [0]), "outside 0..1"),
        (([24], [float("nan")], [0]), "outside 0..1"),
        (([24], [0.1], [-0.1]), "deviation below 0"),
        (([24], [0.1], [float("nan")]), "deviation below 0"),
        (([24], [0.1], [float("inf")]), "deviation below 0"),
    ],
)
def test_what_is_no_line_of_map_is_refused_by_name(line, problem):
    with pytest.raises(ConfigError, match=f"'bad'.*({problem})"):
        map_over_bits_svg({"good": LINES["OPQN"], "bad": line})


@pytest.mark.parametrize("count", [0, MAX_CURVES + 1])
def test_the_number_of_lines_of_map_is_bounded(count):
    with pytest.raises(ConfigError, match=f"1 to {MAX_CURVES}"):
        map_over_bits_svg({str(number): LINES["OPQN"] for number in range(count)})


def points(svg):
    """Return the points of every curve inside the axes, in the picture's units; y grows downwards."""
    found = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="([^"]*)"', svg.decode())
    shapes = [path for path, style in found if "#e3e6ea" not in style]
    return [np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path), float) for path in shapes]


@pytest.mark.parametrize(
    ("draw", "across", "up"),
    [
        (detection_error_svg, "FPIR: strangers named", "FNIR: people missed"),
        (verification_svg, "FMR: false matches", "TMR: true matches"),
    ],
)
def test_a_chart_of_errors_names_its_curves_its_axes_and_the_powers_of_ten(draw, across, up):
    comments, title, description = texts(draw(ERRORS, "Strangers, 64 bits"))
    assert {"OPQN", across, up, "0.001", "0.01", "0.1", "1", "Strangers, 64 bits"} <= set(comments)
    assert not [text for text in comments if "$" in text or "mathdefault" in text]
    assert title == "Strangers, 64 bits"
    assert description == "Curves: OPQN, FAISS <OPQ> & co"


def test_equal_factors_are_equal_distances_in_a_chart_of_errors():
    # A power law is a straight line on two logarithmic axes, and three times the errors a parallel one above.
    lower, upper = points(detection_error_svg(ERRORS))
    slope = np.diff(lower[:, 1]) / np.diff(lower[:, 0])
    assert slope == pytest.approx(np.full(len(slope), slope[0]), rel=1e-3)
    assert lower[:, 1] - upper[:, 1] == pytest.approx(np.full(len(lower), lower[0, 1] - upper[0, 1]), rel=1e-3)
    assert lower[0, 1] > upper[0, 1]


def test_a_rate_of_true_matches_is_drawn_as_it_is():
    (line,) = points(verification_svg({"a": ([0.01, 0.1, 1.0], [0.91, 0.95, 0.99])}))
    assert np.diff(line[:, 0]) == pytest.approx([line[1, 0] - line[0, 0]] * 2, rel=1e-4)
    assert np.diff(line[:, 1]) == pytest.approx([line[1, 1] - line[0, 1]] * 2, rel=1e-4)


@pytest.mark.parametrize("draw", [detection_error_svg, verification_svg])
@pytest.mark.parametrize(
    "pair", [([0.5, 1], [0, 0]), ([0, 1], [1, 0]), ([1], [1]), ([0], [0]), ([0.4, 1], [0.5, 0.6]), ([1e-5, 1], [1, 1])]
)
def test_rates_of_nothing_and_of_all_can_be_drawn(draw, pair):
    texts(draw({"a": pair}))


@pytest.mark.parametrize(("draw", "names"), [(detection_error_svg, "FPIR and FNIR"), (verification_svg, "FMR and TMR")])
def test_what_are_no_rates_is_refused_by_name(draw, names):
    with pytest.raises(ConfigError, match=f"'bad' leaves 0..1; give {names}"):
        draw({"bad": ([0.1, 1.1], [0.5, 0.5])})


def test_a_training_chart_names_every_loss_part_the_map_and_the_rate():
    comments, title, description = texts(training_curve([epoch(1), epoch(2, validation_map=0.4)], "Run 7"))
    assert {"total", "original", "quantized", "entropy", "loss", "epoch", "Run 7", "mAP (%)"} <= set(comments)
    assert title == "Run 7"
    assert description == "Over 2 epochs: total, original, quantized, entropy, validation mAP, learning rate"


def test_without_validation_its_panel_is_left_out():
    with_none = [epoch(1), epoch(2)]
    without_key = [{key: value for key, value in row.items() if key != "validation_map"} for row in with_none]
    comments, _, description = texts(training_curve(with_none))
    assert "mAP (%)" not in comments
    assert "validation" not in description
    assert training_curve(without_key) == training_curve(with_none)


def test_only_epochs_that_were_validated_are_marked():
    svg = training_curve([epoch(n, validation_map=0.1 * n if n % 5 == 0 else None) for n in range(1, 21)])
    marks = re.findall(rb"<use xlink:href=\"#\w+\" x=[^>]*fill: #0072b2", svg)
    assert len(marks) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_ran_away_still_gives_a_chart(value):
    texts(training_curve([epoch(1), epoch(2, loss=value, quantized=value)]))
    texts(training_curve([epoch(1, loss=value, original=value, quantized=value, entropy=value)]))


@pytest.mark.parametrize("key", ["epoch", "loss", "original", "quantized", "entropy", "learning_rate"])
def test_a_history_without_a_needed_key_is_refused(key):
    with pytest.raises(ConfigError, match=f"entry 1 .*'{key}'"):
        training_curve([epoch(1), epoch(2, **{key: None})])


def test_an_empty_history_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        training_curve([])


@pytest.mark.parametrize("kind", [list, np.array])
def test_a_chart_of_codewords_tells_the_count_of_every_book(kind):
    comments, title, description = texts(codeword_use(kind([64, 0, 41]), 64))
    assert {"64", "0", "41", "codebook", "words used of 64"} <= set(comments)
    assert title == "Codewords in use"
    assert description == "Words used of 64. book 0: 64, book 1: 0, book 2: 41"


def test_the_bars_are_as_high_as_the_counts():
    svg = codeword_use([16, 8, 4], 16).decode()
    bars = re.findall(r'<path d="M [\d.]+ ([\d.]+) \nL [\d.]+ [\d.]+ \nL [\d.]+ ([\d.]+)[^"]*"[^>]*fill: #0072b2', svg)
    heights = [float(bottom) - float(top) for bottom, top in bars]
    assert heights == pytest.approx([heights[0], heights[0] / 2, heights[0] / 4], rel=1e-4)


@pytest.mark.parametrize(("used", "words"), [([], 64), ([65], 64), ([1, -1], 64), ([0], 0)])
def test_counts_that_cannot_be_are_refused(used, words):
    with pytest.raises(ConfigError):
        codeword_use(used, words)


@pytest.mark.parametrize("books", [1, 17, 64])
@pytest.mark.parametrize("words", [1, 2, 256])
def test_any_allowed_shape_can_be_drawn(books, words):
    texts(codeword_use([words] * books, words))


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OpqnError, match=r"pip install 'opqn\[bench\]'"):
        codeword_use([1], 2)
