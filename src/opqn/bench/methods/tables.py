"""Tables of a comparison of methods, as Markdown, and what they come to.

Text of records may hold anything, as records are files; here it is made one line, and Markdown's signs are escaped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from opqn.bench.methods.results import OWN, PROTOCOLS, UNCOMPRESSED, Cell, K, Results, Spread, Suite, is_own
from opqn.data.splits import Protocol
from opqn.report._text import clean, one_line

_NO_VALUE: Final = "\N{EN DASH}"
_SUPERSCRIPTS: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_HASH_DIGITS: Final = 12
# An underscore inside a word is no mark of emphasis; left alone, names and addresses stay readable in the source.
_MARKDOWN: Final = re.compile(r"[\\`*\[\]<>&|~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_FENCE: Final = re.compile(r"`{3,}")


class Table(NamedTuple):
    """A table of plain text whose first column names its rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    """None where there is no value."""
    best: Collection[tuple[int, int]] = ()
    """(row, column), from 0, of the best figures."""
    note: str = ""
    """What the signs in it mean."""

    def part(self, columns: Sequence[int], num_rows: int) -> Table:
        """Return the names and some of the other columns, which count from 1, of the first rows."""
        best = {(row, 1 + columns.index(column)) for row, column in self.best if row < num_rows and column in columns}
        return Table(
            (self.columns[0], *(self.columns[column] for column in columns)),
            tuple((row[0], *(row[column] for column in columns)) for row in self.rows[:num_rows]),
            best,
            self.note,
        )


def tables(records: Iterable[Mapping[str, Any]], suite: Suite, command: str) -> str:
    """Lay out records as Markdown: the outcome, quality by data set and protocol, costs, notes and facts.

    Args:
        records: of trainings, as the runner stored them, in any order.
        suite: the comparison that they belong to; records of other entries, lengths and seeds are left out.
        command: what the reader types to get the same.

    Returns:
        The text, which ends with a line end. The same records give the same text.

    Raises:
        DataError: no record of the suite, one that cannot be used, two of the same training, or splits that differ
            where they must not. The message says what to do.
    """
    return markdown(Results.of(records, suite), command)


def summary(records: Iterable[Mapping[str, Any]], suite: Suite) -> dict[str, Any]:
    """Say where OPQN is first, and by how much.

    A cell is a data set, a protocol and a length of code. It is complete if every entry of the suite has a record in
    it. OPQN and OPQN-plus are each measured against the methods that are neither of them nor a variant of them
    (``"opqn, hadamard"``); ``opqn-l2q`` counts as another method. Figures are means over seeds.

    Args:
        records: as in :func:`tables`.
        suite: as in :func:`tables`.

    Returns:
        A JSON-ready document:

        - ``methods``: names in the order of the tables;
        - ``cells``: for each ``data``, ``protocol``, ``bits``, ``is_complete``, ``missing`` (labels of entries),
          ``has_fewer_seeds`` (of some method than of another), ``winner`` and ``winner_map`` (of all methods, variants
          too; None without a record), ``best_other`` and ``best_other_map`` (None without another method), and
          ``own``: ``opqn`` and ``opqn-plus``, where they have a record, to ``map``, ``rank`` (1 is first), ``of``
          (methods ranked), ``margin`` (its mAP less the best other's; None without one) and ``is_first`` (no other
          method beats it);
        - ``complete_cells``, ``incomplete_cells``: how many there are;
        - ``wins``: method to the number of complete cells in which it is the winner;
        - ``own``: method to ``first`` (number of complete cells in which it is), ``share`` (of the complete cells; None
          if there is none) and ``not_first`` (data, protocol, bits, rank, best_other, margin of the others). A suite
          without other methods has nothing here.

    Raises:
        DataError: as in :func:`tables`.
    """
    return outcome(Results.of(records, suite))


def outcome(results: Results) -> dict[str, Any]:
    """Return what :func:`summary` returns."""
    cells = [_outcome_of_cell(results, cell) for cell in results.cells]
    complete = [cell for cell in cells if cell["is_complete"]]
    has_rivals = any(not is_own(name) for name in results.methods)
    return {
        "suite": results.suite.name,
        "methods": list(results.methods),
        "cells": cells,
        "complete_cells": len(complete),
        "incomplete_cells": len(cells) - len(complete),
        "wins": dict(Counter(cell["winner"] for cell in complete).most_common()),
        "own": {
            name: _share(name, [cell for cell in complete if name in cell["own"]])
            for name in OWN
            if name in results.methods and has_rivals
        },
    }


def _outcome_of_cell(results: Results, cell: Cell) -> dict[str, Any]:
    spreads = {name: spread for name in results.methods if (spread := results.quality(cell, name)) is not None}
    means = {name: spread.mean for name, spread in spreads.items()}
    others = {name: mean for name, mean in means.items() if not is_own(name)}
    winner, other = _best(means), _best(others)
    missing = results.missing(cell)
    own = {}
    for name in OWN:
        if name in means:
            better = sum(mean > means[name] for mean in others.values())
            own[name] = {
                "map": means[name],
                "rank": 1 + better,
                "of": 1 + len(others),
                "margin": None if other is None else means[name] - others[other],
                "is_first": not better,
            }
    return {
        "data": cell.data,
        "protocol": cell.protocol,
        "bits": cell.bits,
        "is_complete": not missing,
        "missing": missing,
        "has_fewer_seeds": len({spread.count for spread in spreads.values()}) > 1,
        "winner": winner,
        "winner_map": None if winner is None else means[winner],
        "best_other": other,
        "best_other_map": None if other is None else others[other],
        "own": own,
    }


def _best(means: Mapping[str, float]) -> str | None:
    """Return the name of the highest mean, the first of equal ones."""
    return max(means, key=means.__getitem__) if means else None


def _share(name: str, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    behind = [cell for cell in cells if not cell["own"][name]["is_first"]]
    return {
        "first": len(cells) - len(behind),
        "share": (len(cells) - len(behind)) / len(cells) if cells else None,
        "not_first": [
            {key: cell[key] for key in ("data", "protocol", "bits", "best_other")}
            | {key: cell["own"][name][key] for key in ("rank", "margin")}
            for cell in behind
        ],
    }


def headline(results: Results) -> list[str]:
    """Say in a few sentences of plain text who is first where."""
    found = outcome(results)
    complete, incomplete = found["complete_cells"], found["incomplete_cells"]
    said = ["A cell is a data set, a protocol and a length of code; methods are compared by mAP, mean over seeds."]
    if not complete:
        said.append("No cell is complete yet.")
    elif found["own"]:
        shares = ", ".join(
            f"{name} is first in {share['first']} of {complete} complete cells "
            f"({100 * share['share']:.0f}\N{NO-BREAK SPACE}%)"
            for name, share in found["own"].items()
        )
        said.append(f"{shares}, counted against the methods that are not OPQN's own.")
        for name, share in found["own"].items():
            if share["not_first"]:
                places = "; ".join(
                    f"{cell['data']}, {cell['protocol']}, {cell['bits']} bits "
                    f"(by {cell['best_other']}, {_fraction(-cell['margin'])} ahead)"
                    for cell in share["not_first"]
                )
                said.append(f"{name} is beaten in: {places}.")
    if complete:
        wins = ", ".join(f"{name} in {count}" for name, count in found["wins"].items())
        said.append(f"Best of all methods, OPQN's own included: {wins}, of {complete} complete cells.")
    if incomplete:
        left = "1 cell is" if incomplete == 1 else f"{incomplete} cells are"
        absent = {label for cell in found["cells"] for label in cell["missing"]}
        names = ", ".join(entry.label for entry in results.suite.entries if entry.label in absent)
        said.append(f"{left} left out of these counts, as not every method has a record there; missing are: {names}.")
    uneven = sum(cell["is_complete"] and cell["has_fewer_seeds"] for cell in found["cells"])
    if uneven:
        said.append(f"In {uneven} of the complete cells some methods have fewer seeds than others.")
    return said


def split_sentence(results: Results, data: str, protocol: Protocol) -> str:
    """Say how many images a data set has in each role; ranges where seeds differ."""
    splits = [record.splits[protocol] for record in results.of_data(data) if protocol in record.splits]
    queries, gallery, people, train = (
        _range([getattr(split, name) for split in splits])
        for name in ("num_queries", "num_gallery", "num_people", "num_train")
    )
    who = "people never trained on" if protocol == "unseen" else "the people trained on"
    return (
        f"Queries and gallery show {who}: {queries} queries of {people} people in a gallery of {gallery} images. "
        f"{train} images were trained on."
    )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def quality_table(results: Results, data: str, protocol: Protocol) -> Table:
    """Lay out mAP with its deviation, then precision at 10, at every length; the uncompressed features come last."""
    cells = [Cell(data, protocol, bits) for bits in results.suite.bits]
    names = results.lines(cells)
    quality = {name: [results.quality(cell, name) for cell in cells] for name in names}
    precision = {name: [results.precision_at(cell, name).get(K) for cell in cells] for name in names}
    most = max(spread.count for line in quality.values() for spread in line if spread is not None)
    rows = [
        (
            with_mark(results, name),
            *(_spread(spread, most) for spread in quality[name]),
            *(None if value is None else _fraction(value) for value in precision[name]),
        )
        for name in names
    ]
    means = {name: [None if spread is None else spread.mean for spread in line] for name, line in quality.items()}
    notes = f"mAP is over the full ranking, P@{K} is the precision among the first {K}. {_seeds_sentence(most)}"
    if any(spread is not None and spread.count < most for line in quality.values() for spread in line):
        notes += " A number in brackets says that a figure is of so many seeds only."
    return Table(
        (
            "method",
            *(f"mAP, {bits} bits" for bits in results.suite.bits),
            *(f"P@{K}, {bits} bits" for bits in results.suite.bits),
        ),
        tuple(rows),
        _best_of_columns([means[name] + precision[name] for name in results.methods]),
        f"{notes} Bold is the best of a column before rounding, the uncompressed features aside.",
    )


def network_table(results: Results, data: str) -> Table:
    """Lay out the mAP of the uncompressed features of every entry's networks: what there is for codes to keep."""
    protocols = results.protocols(data)
    there = {record.entry for record in results.of_data(data)}
    labels = [entry.label for entry in results.suite.entries if entry.label in there]
    quality = {label: [results.network_quality(data, protocol, label) for protocol in protocols] for label in labels}
    most = max((spread.count for line in quality.values() for spread in line if spread is not None), default=0)
    return Table(
        ("network trained by", *(f"mAP, {protocol} people" for protocol in protocols)),
        tuple((with_mark(results, label), *(_spread(spread, most) for spread in quality[label])) for label in labels),
        _best_of_columns([[None if x is None else x.mean for x in quality[label]] for label in labels]),
        "The features before they are coded, by cosine similarity: what a method's training taught its network, and "
        f"what there is for codes to keep. Means over code lengths. {_seeds_sentence(most)}",
    )


def _seeds_sentence(most: int) -> str:
    if most == 1:
        return "Each figure is of one seed."
    return f"Figures are means over {most} seeds, ± is the standard deviation over them (of the sample)."


def _best_of_columns(figures: Sequence[Sequence[float | None]]) -> frozenset[tuple[int, int]]:
    """Return (row, column) of the highest figures of each column; columns count from 1, after the names."""
    best: set[tuple[int, int]] = set()
    for column, values in enumerate(zip(*figures, strict=True), start=1):
        highest = max((value for value in values if value is not None), default=None)
        best.update((row, column) for row, value in enumerate(values) if value is not None and value == highest)
    return frozenset(best)


def cost_table(results: Results) -> Table:
    """Lay out what methods cost at the middle length."""
    rows = []
    for name in results.methods:
        cost = results.cost(name)
        figures = [None] * 5 if cost is None else [*map(_figure, cost[:4]), str(cost.trainings)]
        rows.append((with_mark(results, name), *figures))
    if {record.device for record in results.records} == {"cpu"}:
        unit, clock = "CPU s", "the CPU time of all threads"
    else:
        unit, clock = "s", "the CPU time of all threads on a CPU, the time that passed on an accelerator"
    return Table(
        ("method", f"training, {unit}", "bytes a face", "encoding, ms", "search, µs", "trainings"),
        tuple(rows),
        note=f"Means over data sets and seeds; the last column says of how many trainings. Training is {clock}; codes "
        "that came of one training share it. Encoding is an image through network and code, search is the exact 10 "
        "best of a gallery for a query, both with one thread.",
    )


def split_table(results: Results) -> Table:
    """Lay out the hashes of the splits, and how many images could not be read, by data set and seed."""
    rows = []
    for data in results.data:
        records = results.of_data(data)
        for seed in sorted({record.seed for record in records}):
            same = [record for record in records if record.seed == seed]
            hashes = {protocol: split.hash for record in same for protocol, split in record.splits.items()}
            short = [_short_hash(hashes[protocol]) if protocol in hashes else None for protocol in PROTOCOLS]
            rows.append((data, str(seed), *short, f"{max(record.skipped for record in same):,}"))
    return Table(
        ("data", "seed", *(f"split ({protocol})" for protocol in PROTOCOLS), "images not read"),
        tuple(rows),
        note=f"The first {_HASH_DIGITS} digits of the SHA-256 of each split's lists of images.",
    )


def _short_hash(text: str) -> str:
    return text.removeprefix("sha256:")[:_HASH_DIGITS]


def facts(results: Results, command: str) -> dict[str, str]:
    """Return what a reader needs to judge or repeat the comparison, as plain text."""
    records = results.records
    versions = {", ".join(f"{name} {version}" for name, version in record.versions.items()) for record in records}
    found = {
        "suite": results.suite.name,
        "data sets": ", ".join(results.data),
        "code lengths": ", ".join(f"{bits} bits" for bits in results.suite.bits),
        "seeds": _seeds(results),
        "trainings": f"{len({record.key for record in records}):,}",
        "machine": "; ".join(sorted({record.cpu for record in records})),
        "trained on": ", ".join(sorted({record.device for record in records})),
        "versions": "; ".join(sorted(versions)),
    }
    if results.left_out:
        found["records left out"] = f"{results.left_out:,}, of other entries, lengths or seeds"
    return found | {"command": command}


def _seeds(results: Results) -> str:
    planned, there = list(results.suite.seeds), sorted({record.seed for record in results.records})
    text = ", ".join(map(str, there))
    return text if sorted(planned) == there else f"{text} (planned: {', '.join(map(str, planned))})"


def footnotes(results: Results) -> list[str]:
    """Return the numbered footnotes of the methods that have a record."""
    return [f"{str(number).translate(_SUPERSCRIPTS)} {text}" for text, number in _note_numbers(results).items()]


def with_mark(results: Results, name: str) -> str:
    """Return a method's name with the number of its footnote, if it has one."""
    number = _note_numbers(results).get(results.suite.footnotes.get(name, ""))
    return name if number is None else f"{name}{str(number).translate(_SUPERSCRIPTS)}"


def _note_numbers(results: Results) -> dict[str, int]:
    """Number the texts of footnotes in the order of the methods; methods of one text share a number."""
    notes = results.suite.footnotes
    shown = [*results.methods, UNCOMPRESSED] if results.features else results.methods
    texts = dict.fromkeys(notes[name] for name in shown if name in notes)
    return {text: number for number, text in enumerate(texts, start=1)}


def _spread(spread: Spread | None, most: int) -> str | None:
    """Write ``.312 ± .011``, with the number of seeds if it is less than ``most``."""
    if spread is None:
        return None
    text = _fraction(spread.mean)
    text = text if spread.deviation is None else f"{text} ± {_fraction(spread.deviation)}"
    return text if spread.count == most else f"{text} ({spread.count})"


def _fraction(value: float) -> str:
    """Write three decimals without the leading zero."""
    return f"{value:.3f}".removeprefix("0")


def _figure(value: float) -> str:
    """Write three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(results: Results, command: str) -> str:
    """Return what :func:`tables` returns."""
    parts = [f"# Comparison of methods: {_escape(results.suite.name)}", *map(_escape, headline(results))]
    for data in results.data:
        parts.append(f"## {_escape(data)}")
        for protocol in results.protocols(data):
            parts += [f"### {protocol.capitalize()} people", _escape(split_sentence(results, data, protocol))]
            parts += _markdown_table(quality_table(results, data, protocol))
        parts += ["### Uncompressed features", *_markdown_table(network_table(results, data))]
    parts += [f"## Costs at {results.middle_bits} bits", *_markdown_table(cost_table(results))]
    notes = footnotes(results)
    if notes:
        parts += ["## Notes", *map(_escape, notes)]
    told = facts(results, command)
    told.pop("command")
    parts += ["## How it was measured", *_markdown_table(split_table(results))]
    parts.append("\n".join(f"- {_escape(name)}: {_escape(value)}" for name, value in told.items()))
    parts += ["The command:", _fenced(command)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> list[str]:
    lines = [
        f"| {' | '.join(map(_escape, table.columns))} |",
        f"|---|{'--:|' * (len(table.columns) - 1)}",
        *(
            f"| {' | '.join(_markdown_cell(text, (row, column) in table.best) for column, text in enumerate(cells))} |"
            for row, cells in enumerate(table.rows)
        ),
    ]
    return ["\n".join(lines), _escape(table.note)]


def _markdown_cell(text: str | None, is_best: bool) -> str:
    if text is None:
        return _NO_VALUE
    return f"**{_escape(text)}**" if is_best else _escape(text)


def _escape(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def _fenced(text: str) -> str:
    """Return a block of code whose fence is longer than any run of backticks in it."""
    text = clean(text).strip("\n")
    fence = "`" * (1 + max((len(run) for run in _FENCE.findall(text)), default=2))
    return f"{fence}\n{text}\n{fence}"
