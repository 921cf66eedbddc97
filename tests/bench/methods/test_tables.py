"""Records become tables that say what the records say, whatever order they come in and whatever names they hold."""

from __future__ import annotations

import json
import random
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from made_up import COSFACE_ROWS, Suite, comparison, record, report, row, suite_of
from markdown_it import MarkdownIt

from opqn.bench.methods.tables import summary, tables
from opqn.errors import DataError
from opqn.report._text import one_line

DASH = "\N{EN DASH}"
COMMAND = "opqn bench methods --suite faces --data data --out out"
TINY = suite_of("opqn", "csq", bits=(24, 48), seeds=(0, 1))


def html_of(text):
    """Return what an independent reader makes of Markdown: heading texts, and tables of cells, text and boldness."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    headings, found = [], []
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            headings.append("".join(child.content for child in token.children))
        if token.type == "table_open":
            found.append([])
        if token.type == "tr_open":
            found[-1].append([])
        if before.type in {"th_open", "td_open"}:
            is_bold = any(child.type == "strong_open" for child in token.children)
            found[-1][-1].append(("".join(child.content for child in token.children), is_bold))
    return headings, found


def table_of(text, number=0):
    """Return a table as method -> texts of cells, without its heading."""
    return {cells[0][0]: [content for content, _ in cells[1:]] for cells in html_of(text)[1][number][1:]}


def bold_of(text, number=0):
    """Return (method, column) of the bold cells of a table, columns from 1."""
    return {
        (cells[0][0], column)
        for cells in html_of(text)[1][number][1:]
        for column, (_, is_bold) in enumerate(cells)
        if is_bold
    }


def records_of(unseen, suite=TINY):
    """Make records of (entry, bits) -> mAP of unseen people by seed."""
    return [
        record(entry, bits, seed, unseen=value, seen=value / 2)
        for (entry, bits), values in unseen.items()
        for seed, value in zip(suite.seeds, values, strict=False)
    ]


FULL = {("opqn", 24): [0.3, 0.5], ("opqn", 48): [0.4, 0.6], ("csq", 24): [0.2, 0.3], ("csq", 48): [0.5, 0.7]}


def test_a_table_has_a_line_a_method_with_mean_and_deviation_and_then_precision_at_ten():
    text = tables(records_of(FULL), TINY, COMMAND)
    headings, (unseen, seen, networks, costs, splits) = html_of(text)
    assert headings == [
        "Comparison of methods: faces",
        "imfdb",
        "Unseen people",
        "Seen people",
        "Uncompressed features",
        "Costs at 48 bits",
        "How it was measured",
    ]
    heads = ["method", "mAP, 24 bits", "mAP, 48 bits", "P@10, 24 bits", "P@10, 48 bits"]
    assert [content for content, _ in unseen[0]] == [content for content, _ in seen[0]] == heads
    assert table_of(text) == {
        "opqn": [".400 ± .141", ".500 ± .141", ".360", ".450"],
        "csq": [".250 ± .071", ".600 ± .141", ".225", ".540"],
    }
    assert table_of(text, 1)["opqn"][0] == ".200 ± .071"
    assert bold_of(text) == {("opqn", 1), ("csq", 2), ("opqn", 3), ("csq", 4)}
    assert "Figures are means over 2 seeds" in text
    assert "in brackets" not in text
    assert len(networks) == len(costs) == len(splits) == 3


def test_one_seed_has_no_deviation():
    text = tables(records_of({key: values[:1] for key, values in FULL.items()}), TINY, COMMAND)
    assert table_of(text)["opqn"] == [".300", ".400", ".270", ".360"]
    assert "Each figure is of one seed." in text
    assert "seeds: 0 (planned: 0, 1)" in text


def test_a_figure_of_fewer_seeds_than_others_is_marked():
    text = tables(records_of(FULL | {("csq", 48): [0.5]}), TINY, COMMAND)
    assert table_of(text)["csq"] == [".250 ± .071", ".500 (1)", ".225", ".450"]
    assert "A number in brackets says that a figure is of so many seeds only." in text
    assert "In 2 of the complete cells some methods have fewer seeds than others." in text


def test_what_has_no_record_is_a_dash_and_said_to_be_missing():
    three = suite_of("opqn", "csq", "dpq", bits=(24, 48), seeds=(0, 1))
    text = tables(records_of({key: FULL[key] for key in FULL if key != ("csq", 24)}), three, COMMAND)
    assert table_of(text)["csq"] == [DASH, ".600 ± .141", DASH, ".540"]
    assert list(table_of(text)) == ["opqn", "csq"]
    assert (
        "4 cells are left out of these counts, as not every method has a record there; missing are: csq, dpq." in text
    )
    assert "No cell is complete yet." in text


def test_the_best_is_chosen_before_rounding_and_equal_ones_are_both_bold():
    values = {("opqn", 24): [0.3001], ("csq", 24): [0.3002], ("opqn", 48): [0.5], ("csq", 48): [0.5]}
    text = tables(records_of(values), TINY, COMMAND)
    assert table_of(text)["opqn"][0] == table_of(text)["csq"][0] == ".300"
    assert {place for place in bold_of(text) if place[1] < 3} == {("csq", 1), ("opqn", 2), ("csq", 2)}


@pytest.mark.parametrize("value", [0.0, 1.0, 0.9999, 0.0004, 1 + 5e-7])
def test_the_ends_of_the_range_are_written_whole(value):
    text = tables([record(unseen=value)], suite_of("opqn", bits=(24,)), COMMAND)
    assert table_of(text)["opqn"][0] == {0.0: ".000", 0.0004: ".000"}.get(value, "1.000")


def test_methods_stand_in_the_order_of_the_suite_and_uncompressed_features_last():
    suite = Suite()
    text = tables(comparison(suite), suite, COMMAND)
    names = list(table_of(text))
    assert names == ["opqn", "opqn-plus", *COSFACE_ROWS, *[e.label for e in suite.entries[3:]], "cosface, uncompressed"]
    assert table_of(text)["cosface, uncompressed"] == [".500 ± .000"] * 4 + [DASH] * 4
    assert not {place for place in bold_of(text) if place[0] == "cosface, uncompressed"}
    assert "cosface, uncompressed" not in table_of(text, 6)


def test_uncompressed_features_are_shown_at_the_lengths_that_their_training_was_compressed_to():
    suite = suite_of("opqn", "cosface", bits=(24, 48), seeds=(0, 1))
    made = [record("cosface", seed=seed, rows=[row("cosface + PQ", 48, 0.4, 0.3)]) for seed in (0, 1)]
    made[0]["features"], made[1]["features"] = {"seen": 0.6, "unseen": 0.5}, {"seen": 0.8}
    text = tables([*made, record("opqn", 24)], suite, COMMAND)
    assert table_of(text)["cosface, uncompressed"][:2] == [DASH, ".500 (1)"]
    assert table_of(text, 1)["cosface, uncompressed"][:2] == [DASH, ".700 ± .141"]


def test_what_networks_know_is_shown_by_entry_as_the_mean_over_lengths_and_then_over_seeds():
    suite = suite_of("opqn", "csq", "cosface", "dpq", bits=(24, 48), seeds=(0, 1), footnotes={"csq": "Told."})
    known = {("opqn", 24): (0.2, 0.3), ("opqn", 48): (0.4, 0.3), ("csq", 24): (0.35,), ("cosface", 48): (0.1, 0.1)}
    made = [
        record(entry, bits, seed, rows=[row(f"{entry} + PQ" if entry == "cosface" else entry, bits, 0.9, 0.9)])
        | {"features": {"unseen": value, "seen": 2 * value}}
        for (entry, bits), values in known.items()
        for seed, value in enumerate(values)
    ]
    text = tables([*made, record("csq", 24, data="other")], suite, COMMAND)
    assert table_of(text, 2) == {
        "opqn": [".300 ± .000", ".600 ± .000"],
        "csq¹": [".350 (1)", ".700 (1)"],
        "cosface": [".100 ± .000", ".200 ± .000"],
    }
    assert bold_of(text, 2) == {("csq¹", 1), ("csq¹", 2)}


def test_data_without_unseen_people_has_no_such_table():
    headings, found = html_of(tables([record(unseen=None)], suite_of("opqn", bits=(24,)), COMMAND))
    assert "Unseen people" not in headings
    assert "Seen people" in headings
    assert [content for content, _ in found[-1][1]] == ["imfdb", "0", DASH, "5ee0000514ff", "0"]


def test_costs_are_means_over_data_sets_of_means_over_seeds_at_the_middle_length():
    suite = suite_of("opqn", "csq", bits=(64, 24, 48, 36), seeds=(0, 1))
    made = [
        record(seed=0, bits=48, train_seconds=100.0),
        record(seed=1, bits=48, train_seconds=200.0),
        record(seed=0, bits=48, train_seconds=1850.0, data="fashion"),
        record(seed=0, bits=36, train_seconds=9e9),
        record("csq", bits=24),
    ]
    text = tables(made, suite, COMMAND)
    assert "## Costs at 48 bits" in text
    assert table_of(text, 6) == {"opqn": ["1,000", "6", "0.9", "310", "3"], "csq": [DASH] * 5}
    assert "training, CPU s" in text
    on_gpu = tables([*made[1:], made[0] | {"device": "cuda"}], suite, COMMAND)
    assert "training, s" in on_gpu
    assert "the time that passed on an accelerator" in on_gpu


def test_a_training_that_was_tested_on_several_data_sets_is_one():
    made = [record(key="one"), record(key="one", data="imfdb, trained on fashion", train_seconds=95.125), record("csq")]
    text = tables(made, suite_of("opqn", "csq", bits=(24,), seeds=(0,)), COMMAND)
    assert table_of(text, 6) == {"opqn": ["94.1", "3", "0.9", "310", "1"], "csq": ["93.1", "3", "0.9", "310", "1"]}
    assert "- trainings: 2\n" in text


def test_names_refer_to_footnotes_that_are_numbered_in_the_order_of_the_methods():
    notes = {"cosface + PQ": "b", "csq": "a", "opqn": "b", "unknown": "c", "cosface, uncompressed": "d"}
    suite = suite_of("csq", "opqn", "dpq", "cosface", bits=(24,), seeds=(0,), footnotes=notes)
    made = [record("csq"), record("opqn"), record("dpq"), record("cosface", rows=[row("cosface + PQ", 24, 0.3, 0.2)])]
    text = tables(made, suite, COMMAND)
    assert list(table_of(text)) == ["csq¹", "opqn²", "dpq", "cosface + PQ²", "cosface, uncompressed³"]
    assert list(table_of(text, 3)) == ["csq¹", "opqn²", "dpq", "cosface + PQ²"]
    assert "## Notes\n\n¹ a\n\n² b\n\n³ d\n\n##" in text
    assert "Notes" not in tables(records_of(FULL), TINY, COMMAND)


def test_facts_name_splits_seeds_versions_machine_and_command():
    made = records_of(FULL)
    made[0] |= {"versions": {"opqn": "0.8.0", "torch": "2.7.0"}, "cpu": "another machine", "skipped": 1234}
    text = tables([*made, record("dpq"), record("csq", seed=9)], TINY, COMMAND)
    assert html_of(text)[1][-1][1:] == [
        [("imfdb", False), ("0", False), ("0bad000514ff", False), ("5ee0000514ff", False), ("1,234", False)],
        [("imfdb", False), ("1", False), ("0bad010514ff", False), ("5ee0010514ff", False), ("0", False)],
    ]
    for line in (
        "- seeds: 0, 1\n",
        "- trainings: 8\n",
        "- machine: 2 cores of a made-up machine; another machine\n",
        "- versions: opqn 0.8.0, torch 2.7.0; opqn 0.9.0, torch 2.8.0, numpy 2.3.0\n",
        "- records left out: 2, of other entries, lengths or seeds\n",
        f"```\n{COMMAND}\n```\n",
        "1,600 queries of 20 people in a gallery of 1,300 to 1,301 images. 6,400 images were trained on.",
        "1,600 queries of 80 people in a gallery of 6,400 images. 6,400 images were trained on.",
    ):
        assert line in text


def test_codes_of_other_lengths_are_left_out():
    suite = suite_of("cosface", bits=(24,), seeds=(0,))
    rows = [row("cosface + PQ", 24, 0.4, 0.3), row("cosface + PQ", 36, 0.9, 0.9), row("cosface + LSH", 36, 0.9, 0.9)]
    text = tables([record("cosface", rows=rows)], suite, COMMAND)
    assert list(table_of(text)) == ["cosface + PQ", "cosface, uncompressed"]
    assert table_of(text)["cosface + PQ"] == [".300", ".270"]


@given(name=st.text(min_size=1, max_size=30).filter(str.strip), command=st.text(max_size=30))
@example(name="a|b *c* `d` <e> &amp; [f](g) _h_ ~~i~~ \\ # j #", command="```\n# no heading\n````")
@example(name="1. a\n# b", command="    x")
@settings(max_examples=60, deadline=None)
def test_no_name_and_no_command_is_taken_for_markdown(name, command):
    made = [record("opqn", data=name, cpu=name, versions={name: name}), record("csq", data=name)]
    assume(one_line(name))
    text = tables(made, suite_of("opqn", "csq", bits=(24,), footnotes={"csq": name}), command)
    headings, found = html_of(text)
    assert headings[:3] == ["Comparison of methods: faces", one_line(name), "Unseen people"]
    assert headings[-2:] == ["Notes", "How it was measured"]
    assert len(headings) == 8
    assert [len(rows) for rows in found] == [3, 3, 3, 3, 2]
    assert found[-1][1][0][0] == one_line(name)
    assert "html_inline" not in {
        child.type for token in MarkdownIt("commonmark").parse(text) for child in token.children or ()
    }


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(order):
    suite = Suite(bits=(24, 48), footnotes={"csq": "x"})
    made = comparison(suite)
    expected = tables(made, suite, COMMAND), summary(made, suite)
    order.shuffle(made)
    assert (tables(made, suite, COMMAND), summary(made, suite)) == expected


LABELS = ("opqn", "opqn-plus", "opqn, hadamard", "csq", "opqn-l2q")
VALUES = st.sampled_from([0.1, 0.2, 0.3]) | st.floats(0, 1)


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(LABELS), st.sampled_from([24, 48]), st.integers(0, 2), st.sampled_from(["a", "b"])),
        st.tuples(VALUES, VALUES),
        min_size=1,
        max_size=60,
    )
)
@settings(max_examples=60, deadline=None)
def test_figures_ranks_and_shares_are_those_of_a_plain_count(given_values):
    suite = suite_of(*LABELS, bits=(24, 48))
    made = [
        record(label, bits, seed, data=data, seen=seen, unseen=unseen)
        for (label, bits, seed, data), (seen, unseen) in given_values.items()
    ]
    random.Random(0).shuffle(made)
    text, found = tables(made, suite, COMMAND), summary(made, suite)
    assert "nan" not in text.lower()
    json.dumps(found, allow_nan=False)
    cells = iter(found["cells"])
    first = dict.fromkeys(("opqn", "opqn-plus"), 0)
    complete = 0
    places = [(data, protocol) for data in sorted({key[3] for key in given_values}) for protocol in ("unseen", "seen")]
    for number, (data, protocol) in enumerate(places):
        shown = table_of(text, number + number // 2)  # after both protocols stands a table of uncompressed features
        for column, bits in enumerate(suite.bits):
            values = {
                label: [
                    pair[protocol == "unseen"]
                    for (entry, length, _, place), pair in given_values.items()
                    if (entry, length, place) == (label, bits, data)
                ]
                for label in LABELS
            }
            means = {label: float(np.mean(several)) for label, several in values.items() if several}
            for label, texts in shown.items():
                figure = texts[column].split(" (")[0]
                if label not in means:
                    assert figure == DASH
                    continue
                mean, _, deviation = figure.partition(" ± ")
                assert float(mean) == pytest.approx(means[label], abs=0.000501)
                assert bool(deviation) == (len(values[label]) > 1)
                if deviation:
                    assert float(deviation) == pytest.approx(np.std(values[label], ddof=1), abs=0.000501)
            cell = next(cells)
            assert (cell["data"], cell["protocol"], cell["bits"]) == (data, protocol, bits)
            assert cell["missing"] == [label for label in LABELS if label not in means]
            assert cell["is_complete"] == (not cell["missing"])
            complete += cell["is_complete"]
            exact = {label: statistics.fmean(several) for label, several in values.items() if several}
            others = [mean for label, mean in exact.items() if label in ("csq", "opqn-l2q")]
            for own in ("opqn", "opqn-plus"):
                assert (own in cell["own"]) == (own in exact)
                if own in exact:
                    rank = 1 + sum(other > exact[own] for other in others)
                    assert cell["own"][own]["rank"] == rank
                    assert cell["own"][own]["of"] == len(others) + 1
                    margin = cell["own"][own]["margin"]
                    assert margin == (pytest.approx(exact[own] - max(others)) if others else None)
                    first[own] += cell["is_complete"] and rank == 1
            assert cell["winner_map"] == max(exact.values(), default=None)
            assert cell["winner"] == next((label for label in exact if exact[label] == cell["winner_map"]), None)
    assert next(cells, None) is None
    assert (found["complete_cells"], found["incomplete_cells"]) == (complete, 2 * len(places) - complete)
    assert sum(found["wins"].values()) == complete
    for own, share in found["own"].items():
        assert share["first"] == first[own]
        assert share["first"] + len(share["not_first"]) == complete
        assert share["share"] == (first[own] / complete if complete else None)


def test_the_summary_says_where_opqn_is_not_first_and_by_how_much():
    found = summary(records_of(FULL), TINY)
    assert found["complete_cells"] == 4
    assert found["incomplete_cells"] == 0
    share = found["own"]["opqn"]
    assert (share["first"], share["share"]) == (2, 0.5)
    assert [(cell["protocol"], cell["bits"], cell["best_other"], cell["rank"]) for cell in share["not_first"]] == [
        ("unseen", 48, "csq", 2),
        ("seen", 48, "csq", 2),
    ]
    assert share["not_first"][0]["margin"] == pytest.approx(-0.1)
    assert found["wins"] == {"opqn": 2, "csq": 2}
    text = tables(records_of(FULL), TINY, COMMAND)
    assert "opqn is first in 2 of 4 complete cells (50 %), counted against" in text
    assert "opqn is beaten in: imfdb, unseen, 48 bits (by csq, .100 ahead); imfdb, seen, 48 bits (by csq, .050" in text


def test_equal_to_the_best_other_is_first():
    found = summary(
        records_of({("opqn", 24): [0.5], ("csq", 24): [0.5]}), suite_of("csq", "opqn", bits=(24,), seeds=(0,))
    )
    assert found["cells"][0]["own"]["opqn"] == {"map": 0.5, "rank": 1, "of": 2, "margin": 0.0, "is_first": True}


def test_variants_are_no_rivals_and_opqn_l2q_is_one():
    suite = suite_of("opqn", "opqn, hadamard", "opqn-plus, wide", "opqn-plus", bits=(24,), seeds=(0,))
    made = [record(entry.label, unseen=0.3 + 0.1 * number) for number, entry in enumerate(suite.entries)]
    found = summary(made, suite)
    assert found["own"] == {}
    assert found["cells"][0]["own"]["opqn"] == {"map": 0.3, "rank": 1, "of": 1, "margin": None, "is_first": True}
    assert found["cells"][0]["winner"] == "opqn-plus"
    text = tables(made, suite, COMMAND)
    assert "is first in" not in text
    assert "own included: opqn-plus in 1, opqn in 1, of 2 complete cells." in text
    beaten = summary([record(unseen=0.3), record("opqn-l2q", unseen=0.4)], suite_of("opqn", "opqn-l2q", bits=(24,)))
    assert beaten["own"]["opqn"]["first"] == 1
    assert beaten["own"]["opqn"]["not_first"][0]["best_other"] == "opqn-l2q"


@pytest.mark.parametrize(("made", "found"), [([], "there are no records of"), ([record("dpq")], "none of 1 records")])
@pytest.mark.parametrize("function", [lambda made: tables(made, TINY, COMMAND), lambda made: summary(made, TINY)])
def test_without_records_of_the_suite_the_error_says_how_to_make_them(made, found, function):
    with pytest.raises(DataError, match=f"{found}.*'faces'.*run `opqn bench methods --suite faces"):
        function(made)


def changed(place, value):
    """Return a record with another value at a place."""
    made = record()
    inside = made
    for step in place[:-1]:
        inside = inside[step]
    if value is None:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return made


UNSEEN = ("rows", 0, "protocols", "unseen")


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ((*UNSEEN, "mean_average_precision"), float("nan"), "mean_average_precision"),
        ((*UNSEEN, "mean_average_precision"), 1.1, "mean_average_precision"),
        ((*UNSEEN, "mean_average_precision"), "0.3", "mean_average_precision"),
        ((*UNSEEN, "mean_average_precision"), None, "mean_average_precision"),
        ((*UNSEEN, "precision_at", "10"), None, "precision_at lacks 10"),
        ((*UNSEEN, "precision_at", "10"), float("nan"), "precision_at"),
        ((*UNSEEN, "precision"), [1.0] * 100, "precision"),
        ((*UNSEEN, "precision"), [1.0] * 100 + [float("nan")], "precision"),
        (UNSEEN, None, "not measured on exactly the splits"),
        (("rows", 0, "protocols", "third"), report(0.1), "protocols"),
        (("splits", "seen", "hash"), None, "hash"),
        (("splits", "unseen"), None, "not measured on exactly the splits"),
        (("rows", 0, "name"), "csq", "none of entry 'opqn'"),
        (("rows", 0, "bits"), True, "bits"),
        (("rows", 0, "encode_ms"), float("inf"), "encode_ms"),
        (("features", "seen"), float("nan"), "features.seen"),
        (("train_seconds",), -1.0, "train_seconds"),
        (("data",), " ", "data"),
        (("data",), "\ud800", "data"),
        (("seed",), "0", "seed"),
        (("versions",), None, "versions"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_and_what_to_do_is_said(place, value, problem):
    with pytest.raises(DataError, match=f"record 'imfdb-opqn-24-0' cannot be used: .*{problem}.*delete its file"):
        tables([record("csq"), changed(place, value)], TINY, COMMAND)


@pytest.mark.parametrize("made", [None, [], "text", {}])
def test_what_is_no_record_at_all_is_refused(made):
    with pytest.raises(DataError, match="record None cannot be used"):
        tables([made], TINY, COMMAND)


def test_two_records_of_one_training_are_refused():
    with pytest.raises(DataError, match=r"'opqn' at 24 bits on 'imfdb' with seed 0 stands in the records 'a' and 'b'"):
        tables([record(key="b"), record(key="a")], TINY, COMMAND)


def test_methods_measured_on_different_images_are_not_compared():
    other = record("csq")
    other["splits"]["unseen"] |= {"hash": "f" * 64}
    with pytest.raises(DataError, match=r"'imfdb-opqn-24-0' and 'imfdb-csq-24-0'.*unseen splits differ"):
        tables([record(), other], TINY, COMMAND)
