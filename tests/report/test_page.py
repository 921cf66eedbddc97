"""A page is one file that asks for nothing, says only what it was given and escapes all of it."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from opqn.errors import ConfigError, OpqnError
from opqn.report import Page, codeword_use, percent

EVIL = "<script>alert(1)</script>\"'><img src=http://example.org/x onerror=alert(2)>&amp;"
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """An independent reader: elements with attributes, and the text inside each kind of element."""

    def __init__(self, document):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open, self.policy = [], {}, [], None
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def full_page(text="plain"):
    page = Page(text, text)
    page.section(text, f"{text}\n\n{text}")
    page.facts({text: text, "seed": 1})
    page.table(text, [text, "b"], [[text, 1], ["y", None]], highlight={(0, 0)}, note=text)
    page.figure(codeword_use([1, 2], 2, text), text, text)
    page.figure(Image.new("RGB", (4, 4)), text, text)
    page.section("end")
    return page


def read(page):
    reader = Reader(page.render())
    assert not reader.open
    return reader


def test_everything_given_is_escaped_and_still_reads_as_it_was_given():
    reader = read(full_page(EVIL))
    assert [tag for tag, _ in reader.elements] == [tag for tag, _ in read(full_page()).elements]
    for tag in ("title", "h1", "dt", "dd", "caption", "strong", "figcaption"):
        assert reader.texts[tag][0] == EVIL
    assert reader.texts["h2"] == [EVIL, "end"]
    assert [image["alt"] for image in reader.all("img")] == [EVIL] * 2


@given(st.text(st.characters(), min_size=1).filter(str.strip))
@example("lone \ud800 and \x00")
def test_no_text_whatever_makes_an_element_or_breaks_the_encoding(text):
    page = Page(text, text)
    page.section(text, text)
    page.table(text, [text], [[text]], note=text)
    page.facts({text: text})
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", page.render().encode().decode())
    names = {tag for tag, _ in read(page).elements}
    assert names <= {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "p", "section", "div"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd"),
    }


def test_the_page_asks_for_nothing_outside_itself():
    page = full_page().render()
    reader = Reader(page)
    links = [
        value for _, attrs in reader.elements for name, value in attrs.items() if name in {"src", "href", "srcset"}
    ]
    assert len(links) == 2
    assert all(link.startswith("data:image/") for link in links)
    assert {tag for tag, _ in reader.elements}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base", "form"}
    )
    assert not re.search(r"https?:|url\(|@import", page)
    assert not any(name.startswith("on") or name == "style" for _, attrs in reader.elements for name in attrs)


def test_the_policy_lets_in_the_style_sheet_and_data_pictures_alone():
    reader = read(full_page())
    (policy,) = [meta["content"] for meta in reader.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(reader.texts["style"][0].encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["style-src"] == f"'sha256-{digest}'"
    assert "script-src" not in rules
    order = [tag for tag, _ in reader.elements]
    assert order.index("style") > order.index("meta")


def test_the_same_calls_give_the_same_document():
    assert full_page().render() == full_page().render()
    page = full_page()
    assert page.render() == page.render()


def test_sections_are_labelled_by_their_headings_and_hold_what_was_added_after_them():
    page = Page("t")
    page.facts({"before": 1})
    page.section("one", "first paragraph\n\n\nsecond\nparagraph")
    page.section("two")
    page.facts({"inside": 2})
    reader = read(page)
    headings = [heading["id"] for heading in reader.all("h2")]
    assert [section["aria-labelledby"] for section in reader.all("section")] == headings
    assert len(set(headings)) == 2
    assert reader.texts["p"] == ["first paragraph", "second\nparagraph"]
    assert "inside" in reader.texts["section"][1]
    assert "before" not in "".join(reader.texts["section"])


def test_a_table_has_a_caption_and_headers_that_say_what_they_head():
    page = Page("t")
    page.table("results", ["method", "bits", "mAP"], [["OPQN", 48, "72.3 %"], ["PQ", 16384, None]], highlight=[(0, 2)])
    reader = read(page)
    assert reader.texts["caption"] == ["results"]
    assert [header["scope"] for header in reader.all("th")] == ["col", "col", "col", "row", "row"]
    assert reader.texts["th"] == ["method", "bits", "mAP", "OPQN", "PQ"]
    assert reader.texts["td"] == ["48", "72.3 %", "16,384", "\N{EN DASH}"]
    assert reader.texts["strong"] == ["72.3 %"]


@pytest.mark.parametrize(
    ("cells", "right"),
    [
        ([1, 2.5, None], True),
        (["72.3 %", "< 1", "\N{MINUS SIGN}0.5", "~3", "8 bytes"], True),
        (["72.3 %", "none"], False),
        ([".312", ".312 ± .011 (2)", None], True),
        (["OPQN", "PQ"], False),
        ([".", "..."], False),
        ([True, False], False),
    ],
)
def test_columns_of_numbers_are_aligned_to_the_right_with_their_heading(cells, right):
    page = Page("t")
    page.table("c", ["name", "value"], [["row", cell] for cell in cells])
    reader = read(page)
    marked = ["number" in cell.get("class", "").split() for cell in [reader.all("th")[1], *reader.all("td")]]
    assert marked == [right] * (len(cells) + 1)
    assert re.search(r"\.number \{ text-align: right", reader.texts["style"][0])


def test_a_table_may_be_empty():
    page = Page("t")
    page.table("none yet", ["a", "b"], [])
    assert read(page).texts["th"] == ["a", "b"]


@pytest.mark.parametrize("rows", [[["a"]], [["a", 1], ["b", 2, 3]]])
def test_ragged_rows_are_refused(rows):
    with pytest.raises(ConfigError, match="2 columns"):
        Page("t").table("c", ["x", "y"], rows)


@pytest.mark.parametrize("cell", [(1, 0), (0, 2), (-1, 0), (0, -1)])
def test_a_highlight_outside_the_table_is_refused(cell):
    with pytest.raises(ConfigError, match="no cell"):
        Page("t").table("c", ["x", "y"], [["a", 1]], highlight={cell})


def test_facts_are_pairs_and_numbers_are_readable():
    page = Page("t")
    page.facts({"gallery": 1234567, "rate": 0.123456, "cached": True, "note": None, "command": "a \\\n  b"})
    reader = read(page)
    assert reader.texts["dt"] == ["gallery", "rate", "cached", "note", "command"]
    assert reader.texts["dd"] == ["1,234,567", "0.1235", "yes", "\N{EN DASH}", "a \\\n  b"]


def test_a_chart_is_kept_byte_for_byte():
    page, svg = Page("t"), codeword_use([1, 2], 2)
    page.figure(svg, "caption", "alt")
    (image,) = read(page).all("img")
    kind, data = image["src"].split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data, validate=True) == svg


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_a_picture_is_shown_in_its_size_and_on_white(mode):
    page = Page("t")
    page.figure(Image.new(mode, (40, 20), 0 if mode != "RGBA" else (0, 0, 0, 0)), "caption", "alt")
    (image,) = read(page).all("img")
    with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",", 1)[1]))) as shown:
        assert shown.size == (40, 20)
        assert np.asarray(shown.convert("L")).mean() == pytest.approx(255 if mode == "RGBA" else 0, abs=2)


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_figure_without_alt_text_is_refused(alt):
    with pytest.raises(ConfigError, match="alt text"):
        Page("t").figure(Image.new("RGB", (4, 4)), "c", alt)


def test_bytes_that_are_no_svg_are_refused():
    with pytest.raises(ConfigError, match="SVG"):
        Page("t").figure(b"\x89PNG\r\n\x1a\n", "c", "alt")


def test_a_page_without_a_title_is_refused():
    with pytest.raises(ConfigError, match="title"):
        Page(" ")


def test_saving_writes_utf8_and_leaves_nothing_else(tmp_path):
    page = Page("Zoë 李明 \ud800")
    path = tmp_path / "new" / "report.html"
    page.save(path)
    assert path.read_bytes().decode("utf-8") == page.render()
    assert list(path.parent.iterdir()) == [path]
    assert 'charset="utf-8"' in page.render()[:200]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OpqnError, match="cannot write"):
        Page("t").save(tmp_path / "file" / "report.html")


@pytest.mark.parametrize(("value", "text"), [(0.72345, "72.3"), (1.0, "100.0"), (0.0, "0.0"), (0.99951, "100.0")])
def test_a_fraction_is_written_as_per_cent_with_one_decimal(value, text):
    assert percent(value) == f"{text}\N{NO-BREAK SPACE}%"


def test_no_value_stays_no_value():
    assert percent(None) is None
