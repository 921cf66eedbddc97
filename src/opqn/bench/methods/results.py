"""What the records of a comparison say: checked, brought into order and averaged over seeds.

A *cell* is a data set, a protocol and a length of code. Within a cell every method has one mAP for each seed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Final, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from opqn.data.splits import Protocol as SplitProtocol
from opqn.errors import DataError
from opqn.evaluation import NUM_RECALL_LEVELS

PROTOCOLS: Final[tuple[SplitProtocol, ...]] = ("unseen", "seen")
"""In the order in which they are reported: people never trained on come first."""
OWN: Final = ("opqn", "opqn-plus")
"""The methods that are compared with all others; ``"opqn, hadamard"`` is a variant of the first and no rival of it."""
UNCOMPRESSED_ENTRY: Final = "cosface"
UNCOMPRESSED: Final = f"{UNCOMPRESSED_ENTRY}, uncompressed"
K: Final = "10"
"""The k of the precision at k that the tables show, as records write it."""


class Entry(Protocol):
    """A line of a suite: what is trained."""

    @property
    def label(self) -> str:
        """The name that records of it carry as ``entry``."""


class Suite(Protocol):
    """A comparison as it was planned."""

    @property
    def name(self) -> str:
        """What the comparison is called."""

    @property
    def entries(self) -> Sequence[Entry]:
        """In the order of the tables."""

    @property
    def bits(self) -> Sequence[int]:
        """Lengths of code."""

    @property
    def seeds(self) -> Sequence[int]:
        """Each method is trained once with each."""

    @property
    def footnotes(self) -> Mapping[str, str]:
        """Name of a row to what must be said about it."""


_Text = Annotated[str, Field(pattern=r"\S")]
_Count = Annotated[int, Field(ge=0)]
_Amount = Annotated[float, Field(ge=0, le=1e15)]  # bounded so that no sum of them overflows
_Fraction = Annotated[float, Field(ge=0, le=1 + 1e-6)]  # a mean of float32 fractions may leave 1 by its rounding


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class Report(_Part):
    """How well one code ranks one gallery."""

    mean_average_precision: _Fraction
    precision_at: dict[str, _Fraction]
    precision: Annotated[list[_Fraction], Field(min_length=NUM_RECALL_LEVELS, max_length=NUM_RECALL_LEVELS)]
    """(101,) at the recalls 0, 0.01, ..., 1."""

    @model_validator(mode="after")
    def _has_k(self) -> Self:
        if K not in self.precision_at:
            raise ValueError(f"precision_at lacks {K}")
        return self


class Row(_Part):
    """One code of a training."""

    name: _Text
    bits: Annotated[int, Field(ge=1)]
    bytes: _Amount
    encode_ms: _Amount
    search_us: _Amount
    protocols: dict[SplitProtocol, Report]


class SplitFacts(_Part):
    """Which images were trained on and searched."""

    hash: _Text
    num_train: _Count
    num_gallery: _Count
    num_queries: _Count
    num_people: _Count


class Record(_Part):
    """One training and how the codes that came of it do on one data set."""

    key: str
    """Of the training; records of one training that was tested on several data sets share it."""
    data: _Text
    entry: _Text
    seed: int
    versions: dict[str, str]
    cpu: str
    device: str
    splits: dict[SplitProtocol, SplitFacts]
    train_seconds: _Amount
    skipped: _Count
    features: dict[SplitProtocol, _Fraction]
    rows: list[Row]

    @model_validator(mode="after")
    def _rows_are_of_entry_and_splits(self) -> Self:
        for row in self.rows:
            if row.name != self.entry and not row.name.startswith(f"{self.entry} + "):
                raise ValueError(f"row {row.name!r} is none of entry {self.entry!r}")
            if row.protocols.keys() != self.splits.keys():
                raise ValueError(f"row {row.name!r} was not measured on exactly the splits that the record names")
        return self

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Record:
        """Check one record.

        Raises:
            DataError: a value is missing, of the wrong kind, out of range, or not a finite number.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            key = document.get("key") if isinstance(document, Mapping) else None
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"record {key!r} cannot be used: {f'{where}: ' if where else ''}{first['msg']}; delete its file and "
                "run the same command again, which makes it anew"
            ) from error


class Cell(NamedTuple):
    """What is compared at once."""

    data: str
    protocol: SplitProtocol
    bits: int


@dataclass(frozen=True)
class Spread:
    """Values of several seeds."""

    mean: float
    deviation: float | None
    """Standard deviation of the sample (divided by n - 1); None for a single seed."""
    count: int
    """How many seeds."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Average at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


class Cost(NamedTuple):
    """What a method costs at one length: means over data sets of means over seeds."""

    train_seconds: float
    """CPU seconds of all threads; seconds by the clock where an accelerator trained."""
    bytes: float
    encode_ms: float
    search_us: float
    trainings: int
    """How many were averaged; one that was tested on several data sets is one."""


@dataclass(frozen=True)
class Results:
    """Records of a suite by cell and method; nothing in it depends on the order of the records."""

    suite: Suite
    records: tuple[Record, ...]
    """By data set, entry and seed."""
    left_out: int
    """Records that have no part in the suite: of other entries or seeds, or without a code of its lengths."""
    reports: Mapping[Cell, Mapping[str, Mapping[int, Report]]] = field(repr=False)
    """Cell, name of a method, seed."""
    features: Mapping[Cell, Mapping[int, float]] = field(repr=False)
    """Cell and seed to the mAP of the uncompressed features of the entry ``cosface``."""

    @classmethod
    def of(cls, documents: Iterable[Mapping[str, Any]], suite: Suite) -> Results:
        """Check records and bring them into order.

        Args:
            documents: records as they were stored, in any order.
            suite: whose entries, lengths and seeds are looked at; other records and codes are left out.

        Raises:
            DataError: a record that cannot be used, none of the suite, two of the same training, or trainings of one
                data set and seed whose splits differ.
        """
        every = [Record.read(document) for document in documents]
        labels = [entry.label for entry in suite.entries]
        chosen = [
            record
            for record in every
            if record.entry in labels
            and record.seed in suite.seeds
            and any(row.bits in suite.bits for row in record.rows)
        ]
        if not chosen:
            found = f"none of {len(every)} records belongs to" if every else "there are no records of"
            raise DataError(
                f"{found} the entries, lengths and seeds of suite {suite.name!r}; run `opqn bench methods --suite "
                f"{suite.name} --data DIR --out DIR`, which makes them"
            )
        chosen.sort(key=lambda record: (record.data, labels.index(record.entry), record.seed, record.key))
        _check_splits(chosen)
        reports: dict[Cell, dict[str, dict[int, Report]]] = defaultdict(lambda: defaultdict(dict))
        features: dict[Cell, dict[int, float]] = defaultdict(dict)
        keys: dict[tuple[str, str, int, int], str] = {}
        for record in chosen:
            for row in record.rows:
                if row.bits not in suite.bits:
                    continue
                place = (record.data, row.name, row.bits, record.seed)
                if place in keys:
                    raise DataError(
                        f"{row.name!r} at {row.bits} bits on {record.data!r} with seed {record.seed} stands in the "
                        f"records {keys[place]!r} and {record.key!r}; delete the file of the one that is out of date"
                    )
                keys[place] = record.key
                for protocol, report in row.protocols.items():
                    cell = Cell(record.data, protocol, row.bits)
                    reports[cell][row.name][record.seed] = report
                    if record.entry == UNCOMPRESSED_ENTRY and protocol in record.features:
                        features[cell][record.seed] = record.features[protocol]
        by_method = {cell: dict(methods) for cell, methods in reports.items()}
        return cls(suite, tuple(chosen), len(every) - len(chosen), by_method, dict(features))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Names of rows in the order of the suite's entries, without the uncompressed features."""
        names = (name for entry in self.suite.entries for name in self._names.get(entry.label, ()))
        return tuple(dict.fromkeys(names))

    @cached_property
    def _names(self) -> Mapping[str, Sequence[str]]:
        """Label of an entry to the names of its rows, in the order of the records that have most of them."""
        names: dict[str, dict[str, None]] = defaultdict(dict)
        for record in sorted(self.records, key=lambda record: -len(record.rows)):
            names[record.entry].update(dict.fromkeys(row.name for row in record.rows if row.bits in self.suite.bits))
        return {label: tuple(known) for label, known in names.items()}

    @cached_property
    def data(self) -> tuple[str, ...]:
        """Names of the data sets, sorted."""
        return tuple(sorted({record.data for record in self.records}))

    def protocols(self, data: str) -> tuple[SplitProtocol, ...]:
        """Return the protocols that a data set was measured with, unseen people first."""
        there = {protocol for record in self.of_data(data) for protocol in record.splits}
        return tuple(protocol for protocol in PROTOCOLS if protocol in there)

    def of_data(self, data: str) -> list[Record]:
        """Return the records of a data set."""
        return [record for record in self.records if record.data == data]

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell that the suite asks for, with or without records."""
        return tuple(
            Cell(data, protocol, bits)
            for data in self.data
            for protocol in self.protocols(data)
            for bits in self.suite.bits
        )

    def lines(self, cells: Sequence[Cell]) -> list[str]:
        """Return the methods, and the uncompressed features last where any of the cells has them."""
        return [*self.methods, UNCOMPRESSED] if any(cell in self.features for cell in cells) else list(self.methods)

    def quality(self, cell: Cell, name: str) -> Spread | None:
        """Return the mAP of a method, or of :data:`UNCOMPRESSED`, over seeds; None where there is no record."""
        if name == UNCOMPRESSED:
            values = list(self.features.get(cell, {}).values())
        else:
            values = [report.mean_average_precision for report in self._reports(cell, name)]
        return Spread.of(values) if values else None

    def network_quality(self, data: str, protocol: SplitProtocol, entry: str) -> Spread | None:
        """Return the mAP of the uncompressed features of an entry's networks, mean over lengths, over seeds.

        None where no record of the entry was tested so.
        """
        by_seed: dict[int, list[float]] = defaultdict(list)
        for record in self.of_data(data):
            if record.entry == entry and protocol in record.features:
                by_seed[record.seed].append(record.features[protocol])
        return Spread.of([statistics.fmean(by_seed[seed]) for seed in sorted(by_seed)]) if by_seed else None

    def precision_at(self, cell: Cell, name: str) -> dict[str, float]:
        """Return k to the mean over seeds of the precision at k, for each k that all seeds have."""
        reports = self._reports(cell, name)
        every = list(dict.fromkeys(k for report in reports for k in report.precision_at))
        shared = [k for k in every if all(k in report.precision_at for report in reports)]
        return {k: statistics.fmean(report.precision_at[k] for report in reports) for k in shared}

    def curve(self, cell: Cell, name: str) -> NDArray[np.float64] | None:
        """Return the (101,) mean over seeds of the precision at each level of recall; None without a record."""
        reports = self._reports(cell, name)
        return np.mean([report.precision for report in reports], axis=0) if reports else None

    def _reports(self, cell: Cell, name: str) -> list[Report]:
        by_seed = self.reports.get(cell, {}).get(name, {})
        return [by_seed[seed] for seed in sorted(by_seed)]

    def missing(self, cell: Cell) -> list[str]:
        """Return the labels of the suite's entries that have no record in a cell."""
        there = self.reports.get(cell, {})
        return [
            entry.label
            for entry in self.suite.entries
            if not any(name in there for name in self._names.get(entry.label, ()))
        ]

    @property
    def middle_bits(self) -> int:
        """The middle length, the upper one of two."""
        lengths = sorted(self.suite.bits)
        return lengths[len(lengths) // 2]

    def cost(self, name: str) -> Cost | None:
        """Return what a method costs at the middle length; None without a record."""
        by_data: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
        keys = set()
        for record in self.records:
            for row in record.rows:
                if row.name == name and row.bits == self.middle_bits:
                    figures = (record.train_seconds, row.bytes, row.encode_ms, row.search_us)
                    by_data[record.data].append(figures)
                    keys.add(record.key)
        if not by_data:
            return None
        seconds, size, encode, search = np.mean([np.mean(rows, axis=0) for rows in by_data.values()], axis=0).tolist()
        return Cost(seconds, size, encode, search, len(keys))


def is_own(name: str) -> bool:
    """Say whether a row is OPQN, OPQN-plus or a variant of one of them."""
    return name.partition(",")[0] in OWN


def _check_splits(records: Sequence[Record]) -> None:
    """Refuse to compare methods that were trained or measured on different images."""
    first: dict[tuple[str, int, str], Record] = {}
    for record in records:
        for protocol, split in record.splits.items():
            other = first.setdefault((record.data, record.seed, protocol), record)
            if other.splits[protocol].hash != split.hash:
                raise DataError(
                    f"the records {other.key!r} and {record.key!r} are of {record.data!r} and seed {record.seed}, but "
                    f"their {protocol} splits differ, so they cannot be compared; delete the files of the data set "
                    "that are out of date and run the same command again"
                )
