"""The page of a comparison of methods: tables, charts, costs and facts, and the files that go with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from opqn._files import atomic_write_bytes
from opqn.bench.methods.results import OWN, PROTOCOLS, UNCOMPRESSED, Cell, K, Results, Spread, Suite
from opqn.bench.methods.tables import (
    Table,
    cost_table,
    facts,
    footnotes,
    headline,
    markdown,
    network_table,
    outcome,
    quality_table,
    split_sentence,
    split_table,
)
from opqn.data.splits import Protocol
from opqn.evaluation import NUM_RECALL_LEVELS
from opqn.report import Page, map_over_bits_svg, precision_recall_svg

REPORT: Final = "report.html"
MARKDOWN: Final = "results.md"
DOCUMENT: Final = "results.json"
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_NAME: Final = 60  # characters of a data set's name in the name of a file
_NAME_DIGITS: Final = 8


def write_page(records: Iterable[Mapping[str, Any]], suite: Suite, command: str, folder: Path) -> Path:
    """Write a comparison as a page, as Markdown, as figures and as charts.

    ``folder`` then holds

    - ``report.html``: everything, in one file that needs nothing else;
    - ``results.md``: what :func:`opqn.bench.methods.tables.tables` returns;
    - ``results.json``: :func:`opqn.bench.methods.tables.summary` and all means, without curves;
    - ``DATA-PROTOCOL-BITS.svg``: precision-recall curves, mean over seeds of the precision at each recall;
    - ``DATA-PROTOCOL.svg``: mAP over code length, error bars of one standard deviation over seeds.

    In the name of a file, signs of a data set's name other than letters, digits, ``-`` and ``_`` become ``_``, and
    digits of its hash are added. Each file is written whole or not at all, the page last. Other files in the folder are
    left alone. The same records give the same bytes.

    Args:
        records: of trainings, as the runner stored them, in any order.
        suite: the comparison that they belong to; records of other entries, lengths and seeds are left out.
        command: what the reader types to get the same.
        folder: where the files go; it is made if it does not exist.

    Returns:
        The path of the page.

    Raises:
        DataError: the records cannot be used, as in :func:`opqn.bench.methods.tables.tables`; nothing is written.
        ConfigError: there are more than 28 methods, too many for a chart.
        OpqnError: the disk is full or the folder cannot be written, or matplotlib is not installed; the Markdown and
            the figures are there all the same in the latter case.
    """
    results = Results.of(records, suite)
    atomic_write_bytes(folder / MARKDOWN, markdown(results, command).encode())
    document = json.dumps(_document(results, command), indent=2, allow_nan=False)
    atomic_write_bytes(folder / DOCUMENT, f"{document}\n".encode())
    page = Page(f"Comparison of methods: {suite.name}", _subtitle(results))
    page.section("Outcome", "\n\n".join(headline(results)))
    for data in results.data:
        page.section(data)
        for protocol in results.protocols(data):
            _add_protocol(page, results, data, protocol, folder)
        _add_table(page, "Uncompressed features", network_table(results, data))
    page.section("Costs")
    _add_table(page, f"Costs at {results.middle_bits} bits", cost_table(results))
    notes = footnotes(results)
    if notes:
        page.section("Notes", "\n\n".join(notes))
    page.section("How it was measured")
    _add_table(page, "Splits", split_table(results))
    page.facts(facts(results, command))
    page.save(folder / REPORT)
    return folder / REPORT


def _subtitle(results: Results) -> str:
    parts = [
        _plural(len(results.methods), "method"),
        _plural(len(results.data), "data set"),
        _plural(len(results.suite.bits), "code length"),
        _plural(len({record.seed for record in results.records}), "seed"),
    ]
    return ", ".join(parts)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _add_protocol(page: Page, results: Results, data: str, protocol: Protocol, folder: Path) -> None:
    """Add the table and the charts of a data set and protocol, and write the charts as files."""
    people = f"{protocol.capitalize()} people"
    table = quality_table(results, data, protocol)
    num_lengths = len(results.suite.bits)
    by_map = table.part(range(1, 1 + num_lengths), len(table.rows))
    by_precision = table.part(range(1 + num_lengths, 1 + 2 * num_lengths), len(results.methods))
    _add_table(page, f"{people}: mAP", by_map, split_sentence(results, data, protocol))
    page.table(f"{people}: precision at {K}", by_precision.columns, by_precision.rows, highlight=by_precision.best)
    cells = [Cell(data, protocol, bits) for bits in results.suite.bits]
    lines = {name: line for name in results.lines(cells) if (line := _line(results, cells, name)) is not None}
    thick = tuple(name for name in OWN if name in lines)[:1]
    chart = map_over_bits_svg(lines, f"{people}: {data}", thick=thick, yardsticks=(UNCOMPRESSED,))
    stem = f"{_file_name(data)}-{protocol}"
    atomic_write_bytes(folder / f"{stem}.svg", chart)
    spread = "bars are one standard deviation over seeds"
    page.figure(
        chart, f"{people}: mAP over the length of the code; {spread}.", f"mAP over bits of {', '.join(lines)}; {data}"
    )
    recall = np.arange(NUM_RECALL_LEVELS) / (NUM_RECALL_LEVELS - 1)  # (101,)
    for cell in cells:
        curves = {name: (recall, curve) for name in results.methods if (curve := results.curve(cell, name)) is not None}
        if not curves:
            continue
        title = f"{people}, {cell.bits} bits"
        chart = precision_recall_svg(curves, f"{title}: {data}", thick=thick)
        atomic_write_bytes(folder / f"{stem}-{cell.bits}.svg", chart)
        page.figure(
            chart,
            f"{title}: precision over recall, mean over seeds.",
            f"Precision-recall curves of {', '.join(curves)} at {cell.bits} bits, {protocol} people; {data}",
        )


def _add_table(page: Page, caption: str, table: Table, about: str = "") -> None:
    page.table(caption, table.columns, table.rows, highlight=table.best, note=f"{about}\n\n{table.note}")


def _line(results: Results, cells: list[Cell], name: str) -> tuple[list[int], list[float], list[float]] | None:
    """Return lengths, mAP and deviations of a method, for the lengths it was measured at; None if there are none."""
    spreads = {cell.bits: spread for cell in cells if (spread := results.quality(cell, name)) is not None}
    if not spreads:
        return None
    means = [spread.mean for spread in spreads.values()]
    return list(spreads), means, [spread.deviation or 0.0 for spread in spreads.values()]


def _document(results: Results, command: str) -> dict[str, Any]:
    """Return summary, means, costs and facts, JSON-ready."""
    figures = [
        {
            **cell._asdict(),
            "method": name,
            **_mean(spread),
            "precision_at": results.precision_at(cell, name),
        }
        for cell in results.cells
        for name in results.lines([cell])
        if (spread := results.quality(cell, name)) is not None
    ]
    networks = [
        {"data": data, "protocol": protocol, "entry": entry.label, **_mean(spread)}
        for data in results.data
        for protocol in results.protocols(data)
        for entry in results.suite.entries
        if (spread := results.network_quality(data, protocol, entry.label)) is not None
    ]
    costs = {name: cost._asdict() for name in results.methods if (cost := results.cost(name)) is not None}
    splits = {
        (record.data, record.seed, protocol): record.splits[protocol].model_dump()
        for record in results.records
        for protocol in PROTOCOLS
        if protocol in record.splits
    }
    return {
        "summary": outcome(results),
        "means": figures,
        "uncompressed": networks,
        "costs": {"bits": results.middle_bits, "methods": costs},
        "splits": [
            {"data": data, "seed": seed, "protocol": protocol, **split}
            for (data, seed, protocol), split in splits.items()
        ],
        "footnotes": dict(results.suite.footnotes),
        "facts": facts(results, command),
    }


def _mean(spread: Spread) -> dict[str, Any]:
    return {"mean_average_precision": spread.mean, "deviation": spread.deviation, "seeds": spread.count}


def _file_name(data: str) -> str:
    """Return a name that stays inside its folder, and is another one for another data set."""
    safe = _NOT_IN_NAMES.sub("_", data)[:_MAX_NAME]
    return safe if safe == data else f"{safe}-{hashlib.sha256(data.encode()).hexdigest()[:_NAME_DIGITS]}"
