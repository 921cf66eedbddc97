"""The parts of an index: immutable segments of the native core, each with the items that are still in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from opqn.index import _native

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Profile = Literal["compact", "balanced", "fast"]
MAX_ITEMS: Final = _native.MAX_ITEMS
# Books of a group whose pairs all have cells. In groups of four an item with three of a query's words has two in one
# group; in groups of eight two are enough, at more than twice the bytes.
_CLIQUE: Final[dict[Profile, int]] = {"compact": 0, "balanced": 4, "fast": 8}
# With fewer words lists and cells hold so many items each that bounds are faster.
_LEAST_WORDS: Final = 32


@dataclass(frozen=True)
class Structures:
    """What a segment holds beside codes and ids."""

    clique: int
    has_lists: bool
    has_planes: bool = True

    @classmethod
    def of(cls, profile: Profile, num_books: int, num_words: int, size: int) -> Structures:
        """Choose what pays for a segment of this size: a cell is to hold an item, a list of a block several."""
        if profile == "compact" or num_words < _LEAST_WORDS or num_books < 2 or size < num_words**2:
            return cls(0, has_lists=False)
        return cls(_CLIQUE[profile], has_lists=True)

    def bytes_per_item(self, num_books: int) -> float:
        """Bytes for an item of a large segment, with its code and id."""
        per_item = num_books + 4.0 + (num_books + 1) // 2 * self.has_planes + 2 * num_books * self.has_lists
        if self.clique:
            per_item += 3 * (num_pairs(num_books, self.clique) - 1)  # the first pair's cells need no positions
        return per_item


def num_pairs(num_books: int, clique: int) -> int:
    """Count the pairs within groups of ``clique`` neighbouring books."""
    groups, rest = divmod(num_books, clique)
    return groups * clique * (clique - 1) // 2 + rest * (rest - 1) // 2


@dataclass(frozen=True, eq=False)
class Part:
    """A segment, and which of its items were not removed. Changing one means making another, as searches go on."""

    segment: _native.Segment
    num_books: int
    num_words: int
    structures: Structures
    alive: NDArray[np.uint8] | None = None
    """(ceil(n / 8),) bit ``i % 8`` of byte ``i // 8`` for position i; None while all are."""
    num_alive: int = -1
    file: str = ""
    """Its name in the folder it was saved to or loaded from."""

    @classmethod
    def build(
        cls,
        codes: NDArray[np.uint8],
        ids: NDArray[np.int64],
        num_words: int,
        structures: Structures,
        num_threads: int = 1,
    ) -> Part:
        """Build a segment of checked (N, M) codes and (N,) ids; N at most :data:`MAX_ITEMS`."""
        segment = _native.build(
            np.ascontiguousarray(codes),
            np.ascontiguousarray(ids),
            num_words=num_words,
            clique=structures.clique,
            has_lists=structures.has_lists,
            has_planes=structures.has_planes,
            num_threads=num_threads,
        )
        return cls(segment, codes.shape[1], num_words, structures, num_alive=len(codes))

    def __len__(self) -> int:
        """Return the number of items that are still there."""
        return self.num_alive

    def codes(self) -> NDArray[np.uint8]:
        """(n, M) by position, removed ones too."""
        arrays = _native.arrays_of(self.segment)
        if "codes" not in arrays:
            return np.empty((0, self.num_books), dtype=np.uint8)
        codes: NDArray[np.uint8] = arrays["codes"].reshape(-1, self.num_books)
        if "code_starts" in arrays:  # items share codes
            starts = arrays["code_starts"].view(np.uint32)
            codes = np.repeat(codes, starts[1:] - starts[:-1], axis=0)
        return codes

    def items(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return codes and ids of the items that are still there."""
        codes, ids = self.codes(), self.segment.ids()
        if self.alive is None:
            return codes, ids
        there = self.is_alive()
        return codes[there], ids[there]

    def is_alive(self) -> NDArray[np.bool_]:
        """(n,) by position."""
        if self.alive is None:
            return np.ones(len(self.segment), dtype=bool)
        return np.unpackbits(self.alive, count=len(self.segment), bitorder="little").astype(bool)

    def held(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(len(ids),) positions, -1 for an id that is not there or was removed."""
        positions = self.segment.find(ids)
        if self.alive is not None:
            found = np.flatnonzero(positions >= 0)
            at = positions[found]
            positions[found[self.alive[at >> 3] >> (at & 7) & 1 == 0]] = -1
        return positions

    def without(self, positions: NDArray[np.int64]) -> Part:
        """Return the part without the items at these positions, which are there, each named once."""
        size = len(self.segment)
        alive = np.packbits(np.ones(size, dtype=bool), bitorder="little") if self.alive is None else self.alive.copy()
        np.bitwise_and.at(alive, positions >> 3, ~(np.uint8(1) << (positions & 7).astype(np.uint8)))
        return replace(self, alive=alive, num_alive=self.num_alive - len(positions))

    def named(self, file: str) -> Part:
        """Return the part, saved under this name."""
        return replace(self, file=file)

    def mask(self) -> tuple[NDArray[np.uint8], int] | None:
        """Return which items are there and their number; None if all are."""
        return None if self.alive is None else (self.alive, len(self))

    def only(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        """Return which items are there and have one of these (any,) ids, and their number."""
        positions = self.segment.find(ids)
        positions = positions[positions >= 0]
        mask = np.zeros((len(self.segment) + 7) // 8, dtype=np.uint8)
        np.bitwise_or.at(mask, positions >> 3, np.uint8(1) << (positions & 7).astype(np.uint8))
        if self.alive is not None:
            mask &= self.alive
        return mask, int(np.bitwise_count(mask).sum())


def merge(parts: Sequence[Part], profile: Profile, num_threads: int) -> Part:
    """Build one part of the items of several, :data:`MAX_ITEMS` at most and one at least."""
    first, size = parts[0], sum(map(len, parts))
    structures = Structures.of(profile, first.num_books, first.num_words, size)
    segment = _native.merge(
        [part.segment for part in parts],
        [part.mask() for part in parts],
        clique=structures.clique,
        has_lists=structures.has_lists,
        has_planes=structures.has_planes,
        num_threads=num_threads,
    )
    return Part(segment, first.num_books, first.num_words, structures, num_alive=size)
