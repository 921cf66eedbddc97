"""Exact search that grows and shrinks: :class:`CodeIndex`, over the native core.

An index is a tuple of immutable parts and a small tail. Adding replaces the tail, removing replaces a part's mask, and
merging replaces parts by a larger one; each is one assignment, and a search goes on with the tuple it began with. So
any number of threads may search while others add, remove and merge.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, get_args

import numpy as np

from opqn.errors import ConfigError
from opqn.index import _native, files
from opqn.index.reference import as_ids, check_codes, check_shape, number_items
from opqn.index.segments import MAX_ITEMS, Part, Profile, Structures, merge

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# The tail is copied with every addition and scanned with every search, so it is small.
TAIL_ITEMS: Final = 512
# Parts of about the same size are merged when there are this many, so an item is copied a few times in its life.
MERGE_PARTS: Final = 8
# Of ids that a bool array allows: if they are fewer than one in so many, each is looked up.
_FEW: Final = 64

Allowed: TypeAlias = "NDArray[np.bool_] | NDArray[np.int64] | Sequence[int]"


@dataclass(frozen=True, eq=False)
class _State:
    """What a search sees."""

    parts: tuple[Part, ...]
    """The last one is the tail."""
    next_id: int

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)


class CodeIndex:
    """Exact top-k search over codes: the hits and scores of :class:`opqn.ReferenceIndex`, to the bit, far faster.

    Args:
        num_books: M, 1..64.
        num_words: K, a power of two in 2..256.
        profile: how much memory goes into speed: "compact" (codes, ids and half as much again), "balanced" or "fast";
            :meth:`bytes_per_item` tells how much.

    Raises:
        ConfigError: a shape that codes cannot have, or an unknown profile.
    """

    def __init__(self, num_books: int, num_words: int, profile: Profile = "balanced") -> None:
        check_shape(num_books, num_words)
        if profile not in get_args(Profile):
            raise ConfigError(f"unknown profile {profile!r}; choose one of {', '.join(get_args(Profile))}")
        self.num_books = num_books
        self.num_words = num_words
        self.profile: Profile = profile
        self._lock = threading.RLock()  # of those who change the index; searches take none
        self._merging = threading.Lock()
        self._saving = threading.Lock()
        self._state = _State((self._tail(),), 0)

    def __len__(self) -> int:
        """Return the number of items held."""
        return len(self._state)

    @staticmethod
    def bytes_per_item(num_books: int, num_words: int, profile: Profile = "balanced") -> float:
        """Bytes that an item takes in a large index, its code and id included, if no two codes are equal."""
        return Structures.of(profile, num_books, num_words, MAX_ITEMS).bytes_per_item(num_books)

    @property
    def num_bytes(self) -> int:
        """Bytes that the index takes now, in memory or mapped from files."""
        return sum(part.segment.num_bytes for part in self._state.parts)

    # Changing

    def add(self, codes: NDArray[np.uint8], ids: NDArray[np.int64] | Sequence[int] | None = None) -> NDArray[np.int64]:
        """Add items; a search that begins afterwards finds them.

        Args:
            codes: (N, M) uint8, each below K.
            ids: (N,) integers from 0, none of them held already. Without them items are numbered from one above the
                largest id ever added, so that an id once removed is not given to another item.

        Returns:
            (N,) int64 ids, in the order of ``codes``.

        Raises:
            ConfigError: codes or ids of the wrong shape, dtype or range, or an id that occurs twice. Nothing is added.
        """
        check_codes(codes, self.num_books, self.num_words)
        with self._lock:
            state = self._state
            new_ids = self._number(state, codes, ids)
            if not len(new_ids):
                return new_ids
            all_codes, all_ids = codes, new_ids
            if len(state.parts[-1]):
                tail_codes, tail_ids = state.parts[-1].items()
                all_codes, all_ids = np.concatenate([tail_codes, codes]), np.concatenate([tail_ids, new_ids])
            is_full = len(all_ids) > TAIL_ITEMS
            if not is_full:
                parts: tuple[Part, ...] = (*state.parts[:-1], self._tail(all_codes, all_ids))
            else:
                parts = (*state.parts[:-1], *self._build(all_codes, all_ids), self._tail())
            self._state = _State(parts, max(state.next_id, int(new_ids.max()) + 1))
        if is_full:
            self._merge_later()
        return new_ids

    def remove(self, ids: NDArray[np.int64] | Sequence[int]) -> int:
        """Remove the items with these ids; an id named twice counts once. No search that begins afterwards finds them.

        Returns:
            The number of items removed.

        Raises:
            ConfigError: an id that is not held. Nothing is removed.
        """
        wanted = np.sort(as_ids(ids))  # np.unique would hold up searches
        wanted = wanted[np.diff(wanted, prepend=-1) != 0]  # the difference to the largest id overflows
        with self._lock:
            state = self._state
            found = np.zeros(len(wanted), dtype=bool)
            parts = []
            for part in state.parts:
                positions = part.held(wanted)
                here = positions >= 0
                found |= here
                parts.append(part.without(positions[here]) if here.any() else part)
            if not found.all():
                unknown = wanted[np.flatnonzero(~found)[0]]
                raise ConfigError(f"id {unknown} is not in the index; remove only ids that add() returned")
            self._state = _State(tuple(parts), state.next_id)
        self._merge_later()
        return len(wanted)

    def merge(self) -> None:
        """Put all items into as few segments as can hold them, and wait for it. Searches go on meanwhile."""
        with self._merging:
            while True:
                parts = [part for part in self._state.parts[:-1] if len(part)]
                chosen: list[Part] = []
                for part in sorted(parts, key=len):
                    if sum(map(len, chosen)) + len(part) <= MAX_ITEMS:
                        chosen.append(part)
                if len(chosen) < 2:
                    chosen = [part for part in parts if part.alive is not None][:1]
                if not chosen:
                    break
                self._replace(chosen)

    def purge(self) -> None:
        """Rewrite every segment that items were removed from, so that the next :meth:`save` leaves nothing of them.

        Until then a removed item is hidden, and its code still lies in memory and in the files.
        """
        with self._merging:
            while worn := [part for part in self._state.parts[:-1] if part.alive is not None]:
                self._replace(worn[:1])
            with self._lock:
                state = self._state
                if state.parts[-1].alive is not None:
                    self._state = _State((*state.parts[:-1], self._tail(*state.parts[-1].items())), state.next_id)

    # Looking

    @property
    def next_id(self) -> int:
        """One above the largest id ever added."""
        return self._state.next_id

    def holds(self, ids: NDArray[np.int64] | Sequence[int]) -> NDArray[np.bool_]:
        """Tell for each of (N,) ids whether the index holds it, as (N,) bool.

        Raises:
            ConfigError: ids that are not integers from 0.
        """
        wanted = as_ids(ids)
        held = np.zeros(len(wanted), dtype=bool)
        for part in self._state.parts:
            if len(part):
                held |= part.held(wanted) >= 0
        return held

    def items(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the (N, M) uint8 codes and (N,) int64 ids of all items, by id."""
        held = [part.items() for part in self._state.parts]
        codes, ids = (np.concatenate(column) for column in zip(*held, strict=True))
        order = np.argsort(ids)
        return codes[order], ids[order]

    # Searching

    def search(
        self,
        tables: NDArray[np.float32],
        k: int = 10,
        threads: int = 0,
        allowed: Allowed | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k items of highest score for each query.

        Args:
            tables: (Q, M, K) float32 lookup tables without NaN.
            k: number of hits for each query, at least 1.
            threads: how many queries are searched at a time; 0 takes every core.
            allowed: only these items are found: their ids, or a bool array that says for each id whether it may be.

        Returns:
            (Q, k) float32 scores and (Q, k) int64 ids, ordered by score, highest first, then by id, lowest first. Where
            fewer than k items can be found, the rest is padded with score -inf and id -1.

        Raises:
            ConfigError: tables of the wrong shape or dtype, NaN in them, or k below 1.
            CorruptFileError: a file of a loaded index was damaged.
        """
        tables = self._check_tables(tables)
        if k < 1:
            raise ConfigError(f"k is {k}; it must be at least 1")
        segments, masks, flags = self._view_of(allowed)
        # No more hits than items: k may be "all of them", and room is made for k.
        room = max(1, min(k, sum(len(segment) for segment in segments)))
        scores, ids = _native.search(segments, masks, tables, room, threads, allowed=flags)
        if room < k:
            spare = ((0, 0), (0, k - room))
            scores, ids = np.pad(scores, spare, constant_values=-np.inf), np.pad(ids, spare, constant_values=-1)
        return scores, ids

    def search_within(
        self,
        tables: NDArray[np.float32],
        threshold: float,
        threads: int = 0,
        allowed: Allowed | None = None,
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Find all items that score ``threshold`` or more, for each query.

        Args:
            tables: as for :meth:`search`.
            threshold: lowest score, as float32.
            threads: as for :meth:`search`.
            allowed: as for :meth:`search`.

        Returns:
            For each query float32 scores and int64 ids, in the order of :meth:`search`.

        Raises:
            ConfigError: wrong tables, or a threshold that is NaN.
            CorruptFileError: a file of a loaded index was damaged.
        """
        tables = self._check_tables(tables)
        if np.isnan(threshold):
            raise ConfigError("the threshold is NaN, which no score reaches or misses; pass a number")
        segments, masks, flags = self._view_of(allowed)
        found: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = _native.search_within(
            segments, masks, tables, threshold, threads, allowed=flags
        )
        return found

    def explain(self, table: NDArray[np.float32], k: int = 10) -> list[dict[str, Any]]:
        """Tell how one query is searched: which plans ran, what they touched, and what the others would have cost.

        Args:
            table: (M, K) float32.
            k: number of hits.

        Returns:
            For each set of segments that are searched together, JSON-ready: ``num_segments``, ``num_items`` and
            ``num_codes``, the different codes they have; ``plans``, in the order they ran; the numbers of cells, lists,
            postings, bounds and scores looked at; ``estimated_microseconds`` of each plan that could prove its answer
            when the choice was made; and ``floor_at_choice``, the k-th score found until then.

        Raises:
            ConfigError: a wrong table, or k below 1.
        """
        tables = self._check_tables(np.asarray(table)[None])
        if k < 1:
            raise ConfigError(f"k is {k}; it must be at least 1")
        told: list[dict[str, Any]] = _native.explain(*self.view(), tables, k)
        return told

    # Files

    def save(self, folder: str | Path) -> None:
        """Write the index as it is now into a folder, or bring the folder up to date. All else goes on meanwhile.

        A crash or a full disk leaves the index that was there. Segments that are there already are not written again.

        Raises:
            ConfigError: the folder holds something else.
            OpqnError: the disk is full or the folder cannot be written.
        """
        with self._saving:
            state = self._state
            names = files.save(folder, state.parts, state.next_id, self.profile)
            saved = {id(part.segment): name for part, name in zip(state.parts, names, strict=True)}
            with self._lock:  # the index may have changed meanwhile
                state = self._state
                parts = tuple(part.named(saved.get(id(part.segment), part.file)) for part in state.parts)
                self._state = _State(parts, state.next_id)

    @classmethod
    def load(cls, folder: str | Path, mmap: bool = True) -> CodeIndex:
        """Open an index that :meth:`save` wrote.

        Args:
            folder: of the index.
            mmap: map the files, so that opening takes no time and memory is shared between processes; otherwise read
                and check all of it.

        Raises:
            CorruptFileError: a file is missing, cut short or changed.
            ConfigError: there is no index in the folder.
        """
        saved = files.load(folder, mmap=mmap)
        index = cls(saved.num_books, saved.num_words, saved.profile)
        index._state = _State((*saved.parts, index._tail()), saved.next_id)
        return index

    # Details

    def _tail(self, codes: NDArray[np.uint8] | None = None, ids: NDArray[np.int64] | None = None) -> Part:
        if codes is None or ids is None:
            codes, ids = np.empty((0, self.num_books), dtype=np.uint8), np.empty(0, dtype=np.int64)
        return Part.build(codes, ids, self.num_words, Structures(0, has_lists=False, has_planes=False))

    def _build(self, codes: NDArray[np.uint8], ids: NDArray[np.int64]) -> list[Part]:
        parts = []
        for first in range(0, len(codes), MAX_ITEMS):
            piece = slice(first, first + MAX_ITEMS)
            structures = Structures.of(self.profile, self.num_books, self.num_words, len(codes[piece]))
            parts.append(Part.build(codes[piece], ids[piece], self.num_words, structures, 0))
        return parts

    def _number(
        self, state: _State, codes: NDArray[np.uint8], ids: NDArray[np.int64] | Sequence[int] | None
    ) -> NDArray[np.int64]:
        new_ids = number_items(len(codes), state.next_id, ids)
        if ids is None:
            return new_ids
        ordered = np.sort(new_ids)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        old = ordered[ordered < state.next_id]  # ids above were never given, so nothing has to be looked up for them
        for part in state.parts if old.size and not twice.size else ():
            twice = old[part.held(old) >= 0]
            if twice.size:
                break
        if twice.size:
            raise ConfigError(f"id {twice[0]} would occur twice; remove the item that holds it, or choose another id")
        return new_ids

    def _check_tables(self, tables: NDArray[np.float32]) -> NDArray[np.float32]:
        expected = f"a (Q, {self.num_books}, {self.num_words}) float32 array"
        if not isinstance(tables, np.ndarray) or tables.dtype != np.float32 or tables.ndim != 3:
            raise ConfigError(f"tables must be {expected}")
        if tables.shape[1:] != (self.num_books, self.num_words):
            raise ConfigError(f"tables have shape {tables.shape}, expected {expected}: they come from another model")
        tables = np.ascontiguousarray(tables)
        bad = _native.first_bad_table(tables)
        if bad is not None:
            query, has_nan = bad
            if has_nan:
                raise ConfigError(f"the table of query {query} holds NaN; leave such queries out")
            raise ConfigError(
                f"in the table of query {query} a code would add up +inf and -inf, which is no score; "
                "use infinities of one sign only"
            )
        return tables

    def view(self) -> tuple[list[_native.Segment], list[tuple[NDArray[np.uint8], int] | None]]:
        """Return what a search that begins now sees: segments of the native core, and which items of each are there.

        Returns:
            Segments, and for each None, if all of it is there, or a bit for each position and how many are set.
        """
        parts = [part for part in self._state.parts if len(part)]
        return [part.segment for part in parts], [part.mask() for part in parts]

    def _view_of(self, allowed: Allowed | None) -> tuple[list[_native.Segment], list[Any], NDArray[np.uint8] | None]:
        """Return the same for a search among the allowed ids; the last is what to look ids up in, if anything."""
        if allowed is None:
            return *self.view(), None
        chosen = np.asarray(allowed)
        if chosen.ndim == 1 and chosen.dtype == np.bool_:
            if _FEW * np.count_nonzero(chosen) > len(chosen):
                return *self.view(), np.ascontiguousarray(chosen).view(np.uint8)
            chosen = np.flatnonzero(chosen)
        ids = as_ids(chosen)
        parts = [part for part in self._state.parts if len(part)]
        return [part.segment for part in parts], [part.only(ids) for part in parts], None

    # Merging

    def _merge_later(self) -> None:
        if self._crowd() and not self._merging.locked():
            threading.Thread(target=self._merge_crowds, name="opqn-merge", daemon=True).start()

    def _crowd(self) -> list[Part]:
        """Return parts that are to be merged: many of about the same size, or one of which half was removed."""
        parts = self._state.parts[:-1]
        worn = [part for part in parts if 2 * len(part) < len(part.segment)]
        if worn:
            return worn[:1]
        tiers: dict[int, list[Part]] = {}
        for part in parts:
            tier = tiers.setdefault((len(part) // TAIL_ITEMS).bit_length() // 3, [])
            tier.append(part)
            if len(tier) == MERGE_PARTS and sum(map(len, tier)) <= MAX_ITEMS:
                return tier
        return []

    def _merge_crowds(self) -> None:
        if not self._merging.acquire(blocking=False):
            return  # another thread is at it, and looks again when it is done
        try:
            while crowd := self._crowd():
                self._replace(crowd)
        finally:
            self._merging.release()

    def _replace(self, old: list[Part]) -> None:
        """Put one part in the place of several. What is removed from them meanwhile is removed from the new one."""
        new = merge(old, self.profile, num_threads=1) if any(len(part) for part in old) else None
        with self._lock:
            merged = {id(part.segment): part for part in old}
            parts = []
            for part in self._state.parts:
                before = merged.get(id(part.segment))
                if before is None:
                    parts.append(part)
                elif new is not None and len(part) < len(before):
                    gone = part.segment.ids()[before.is_alive() & ~part.is_alive()]
                    new = new.without(new.held(gone))
            self._state = _State((*([new] if new is not None else []), *parts), self._state.next_id)
