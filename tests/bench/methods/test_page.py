"""The page of a comparison, and the files beside it."""

from __future__ import annotations

import base64
import json
import re
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from made_up import COSFACE_ROWS, comparison, record, row, suite_of

from opqn.bench.methods import page as page_module
from opqn.bench.methods.page import write_page
from opqn.bench.methods.tables import summary, tables
from opqn.errors import DataError, OpqnError

COMMAND = "opqn bench methods --suite faces --data data --out 'a <b>'"
SMALL = suite_of("opqn", "csq", "cosface", bits=(24, 48), seeds=(0, 1), footnotes={"csq": "Said of <csq>."})
EVIL = '../<img src=x onerror="alert(1)">'


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made():
    return comparison(SMALL, ("fashion", "imfdb"), without_unseen=("fashion",))


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "new"
    assert write_page(made, SMALL, COMMAND, folder) == folder / "report.html"
    return folder


def test_page_tables_figures_and_every_chart_are_written(folder):
    charts = [
        f"{name}{bits}.svg" for name in ("fashion-seen", "imfdb-seen", "imfdb-unseen") for bits in ("-24", "-48", "")
    ]
    assert files(folder) == sorted([*charts, "report.html", "results.json", "results.md"])


def test_the_page_shows_tables_charts_costs_footnotes_and_facts(folder):
    html = (folder / "report.html").read_text()
    text = unescape(re.sub(r"<[^>]*>", " ", html))
    for said in (
        "opqn is first in",
        "csq¹",
        "¹ Said of <csq>.",
        COMMAND,
        "Costs at 48 bits",
        "5ee0000744ff",
        "numpy 2.3.0",
    ):
        assert said in text
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert headings == ["Outcome", "fashion", "imfdb", "Costs", "Notes", "How it was measured"]
    captions = re.findall(r"<caption>(.*?)</caption>", html)
    assert captions == [
        *("Seen people: mAP", "Seen people: precision at 10", "Uncompressed features"),
        *("Unseen people: mAP", "Unseen people: precision at 10"),
        *("Seen people: mAP", "Seen people: precision at 10", "Uncompressed features"),
        *("Costs at 48 bits", "Splits"),
    ]
    assert html.count("cosface, uncompressed</th>") == 3
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_the_charts_of_the_page_are_those_beside_it(folder):
    shown = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', (folder / "report.html").read_text())
    charts = [data for name, data in written(folder).items() if name.endswith(".svg")]
    assert sorted(base64.b64decode(data) for data in shown) == sorted(charts)


def test_the_best_figures_are_marked_as_in_the_markdown(folder):
    html = (folder / "report.html").read_text()
    bold = re.findall(r"\*\*(.*?)\*\*", (folder / "results.md").read_text())
    assert sorted(re.findall(r"<strong>(.*?)</strong>", html)) == sorted(bold)
    assert re.search(r'<td class="number best"><strong>\.\d{3} ± \.\d{3}</strong>', html)


def test_the_markdown_is_that_of_tables(folder, made):
    assert (folder / "results.md").read_text() == tables(made, SMALL, COMMAND)


def test_the_document_has_summary_and_means_but_no_curves(folder, made):
    text = (folder / "results.json").read_text()
    document = json.loads(text, parse_constant=pytest.fail)
    assert document["summary"] == summary(made, SMALL)
    assert '"precision"' not in text
    line = next(
        line for line in document["means"] if (line["data"], line["protocol"], line["bits"]) == ("imfdb", "unseen", 24)
    )
    values = [
        part["rows"][0]["protocols"]["unseen"]["mean_average_precision"]
        for part in made
        if (part["data"], part["entry"], part["bits"]) == ("imfdb", "opqn", 24)
    ]
    assert line["method"] == "opqn"
    assert line["seeds"] == len(values) == 2
    assert line["mean_average_precision"] == pytest.approx(np.mean(values))
    assert line["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert line["precision_at"]["10"] == pytest.approx(0.9 * np.mean(values))
    assert line["precision_at"].keys() == {"1", "5", "10", "50"}
    assert len(document["means"]) == 6 * (2 + len(COSFACE_ROWS) + 1)
    known = {"data": "imfdb", "protocol": "unseen", "entry": "cosface"}
    assert [line for line in document["uncompressed"] if line.items() >= known.items()] == [
        known | {"mean_average_precision": 0.5, "deviation": 0.0, "seeds": 2}
    ]
    assert len(document["uncompressed"]) == 3 * len(SMALL.entries)
    assert document["costs"]["methods"]["opqn"]["bytes"] == 6
    assert len(document["splits"]) == 6
    assert document["facts"]["command"] == COMMAND


def test_curves_are_means_over_seeds_and_lines_have_deviations_as_bars(made, tmp_path, monkeypatch):
    drawn = []
    chart = b"<svg/>"
    monkeypatch.setattr(
        page_module, "precision_recall_svg", lambda *given, **told: drawn.append((given, told)) or chart
    )
    monkeypatch.setattr(page_module, "map_over_bits_svg", lambda *given, **told: drawn.append((given, told)) or chart)
    write_page(made, SMALL, COMMAND, tmp_path)
    (lines, title), told = drawn[0]
    assert title == "Seen people: fashion"
    assert told == {"thick": ("opqn",), "yardsticks": ("cosface, uncompressed",)}
    assert list(lines) == ["opqn", "csq", *COSFACE_ROWS, "cosface, uncompressed"]
    (curves, title), told = drawn[1]
    assert title == "Seen people, 24 bits: fashion"
    assert told == {"thick": ("opqn",)}
    assert list(curves) == ["opqn", "csq", *COSFACE_ROWS]
    reports = [
        part["rows"][0]["protocols"]["seen"]
        for part in made
        if (part["data"], part["entry"], part["bits"]) == ("fashion", "csq", 24)
    ]
    recall, precision = curves["csq"]
    assert recall == pytest.approx(reports[0]["recall_levels"])
    assert precision == pytest.approx(np.mean([report["precision"] for report in reports], axis=0))
    bits, means, deviations = lines["csq"]
    values = [report["mean_average_precision"] for report in reports]
    assert (bits, means[0]) == ([24, 48], pytest.approx(np.mean(values)))
    assert deviations[0] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize(
    ("labels", "thick"),
    [(("csq", "opqn-plus", "opqn"), ("opqn",)), (("csq", "opqn-plus"), ("opqn-plus",)), (("csq",), ())],
)
def test_opqn_stands_out_in_every_chart_and_opqn_plus_where_it_is_alone(labels, thick, tmp_path, monkeypatch):
    told = []

    def draw(*_given, **named):
        told.append(named["thick"])
        return b"<svg/>"

    monkeypatch.setattr(page_module, "precision_recall_svg", draw)
    monkeypatch.setattr(page_module, "map_over_bits_svg", draw)
    suite = suite_of(*labels, bits=(24,), seeds=(0,))
    write_page([record(label, unseen=None) for label in labels], suite, COMMAND, tmp_path)
    assert told == [thick] * 2


def test_the_same_records_in_another_order_give_the_same_files(folder, made, tmp_path):
    write_page(made[::-1], SMALL, COMMAND, tmp_path)
    assert written(tmp_path) == written(folder)


def test_what_is_not_there_yet_is_left_out_of_the_charts(tmp_path):
    write_page([record("csq", 48), record("opqn", 48, seed=1)], SMALL, COMMAND, tmp_path)
    assert files(tmp_path) == [
        *("imfdb-seen-48.svg", "imfdb-seen.svg", "imfdb-unseen-48.svg", "imfdb-unseen.svg"),
        *("report.html", "results.json", "results.md"),
    ]
    assert "No cell is complete yet." in (tmp_path / "report.html").read_text()


def test_names_from_records_are_text_and_lead_to_no_other_folder(tmp_path):
    suite = suite_of("opqn", "cosface", bits=(24,), seeds=(0,), footnotes={"opqn": EVIL})
    rows = [row(f"cosface + {EVIL}", 24, 0.4)]
    made = [
        record(data=EVIL, cpu=EVIL, device=EVIL, versions={EVIL: EVIL}, unseen=None),
        record("cosface", rows=rows, data=EVIL, cpu=EVIL, device=EVIL, unseen=None),
    ]
    folder = tmp_path / "a" / "b"
    html = write_page(made, suite, EVIL, folder).read_text()
    assert "<img src=x" not in html
    assert not re.search(r"(?<!\\)<img", (folder / "results.md").read_text().partition("The command:")[0])
    assert unescape(re.findall(r"<h2[^>]*>(.*?)</h2>", html)[1]) == EVIL
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert list((tmp_path / "a").iterdir()) == [folder]
    charts = [name for name in files(folder) if name.endswith(".svg")]
    assert all(re.fullmatch(r"_img_src_x_onerror_alert_1_-[0-9a-f]{8}-seen(-24)?\.svg", name) for name in charts)
    assert len(charts) == 2


def test_data_sets_of_like_names_and_long_names_have_files_of_their_own(tmp_path, monkeypatch):
    for name in ("precision_recall_svg", "map_over_bits_svg"):
        monkeypatch.setattr(page_module, name, lambda *_given, **_told: b"<svg/>")
    names = ("a b", "a_b", "a/b", "x" * 300, "x" * 301, "人脸", "..")
    made = [record(data=name, unseen=None) for name in names]
    write_page(made, suite_of("opqn", bits=(24,), seeds=(0,)), COMMAND, tmp_path)
    assert len(list(tmp_path.glob("*-seen-24.svg"))) == len(names)


def test_a_second_page_takes_the_place_of_the_first_and_leaves_other_files_alone(tmp_path):
    suite = suite_of("opqn", bits=(24,), seeds=(0,))
    (tmp_path / "records").mkdir()
    write_page([record(unseen=0.1)], suite, COMMAND, tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    write_page([record(unseen=0.2)], suite, COMMAND, tmp_path)
    assert files(tmp_path) == sorted(["records", *old])
    assert (tmp_path / "results.md").read_bytes() != old["results.md"]


def test_without_usable_records_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match="run `opqn bench methods"):
        write_page([], SMALL, COMMAND, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_tables_and_figures_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OpqnError, match=r"pip install 'opqn\[bench\]'"):
        write_page([record()], SMALL, COMMAND, tmp_path)
    assert files(tmp_path) == ["results.json", "results.md"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    place = Path(tmp_path / "file")
    place.write_text("in the way")
    with pytest.raises(OpqnError, match="cannot write"):
        write_page([record()], SMALL, COMMAND, place)
