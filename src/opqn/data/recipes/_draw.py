"""Choosing queries. Every draw walks the people in the order of their names with one generator made from the seed."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from opqn.data.folders import name_sort_key
from opqn.data.recipes._layout import natural_key, spread
from opqn.data.recipes.cross_set import cross_set_split
from opqn.data.splits import Split, person_of


class Halves(NamedTuple):
    """Images that stay and images that ask, in the order of the people."""

    rest: tuple[str, ...]
    query: tuple[str, ...]


def by_person(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the paths of each person, people sorted, paths in their order."""
    images: dict[str, list[str]] = {}
    for path in paths:
        images.setdefault(person_of(path), []).append(path)
    return {person: images[person] for person in sorted(images, key=name_sort_key)}


def divide(paths: Iterable[str], asks: Container[str]) -> Halves:
    """Keep a division that is there already: those in ``asks`` are the queries."""
    both = tuple(paths)
    return Halves(tuple(path for path in both if path not in asks), tuple(path for path in both if path in asks))


def draw_queries(images: Mapping[str, Sequence[str]], count: Callable[[str, int], int], seed: int) -> Halves:
    """Draw queries of every person: the first ``count`` of ``rng.permutation`` of the person's images.

    Args:
        images: by person.
        count: how many of a person's images ask, given the person and how many there are; one always stays.
        seed: of ``numpy.random.default_rng``.
    """
    rng = np.random.default_rng(seed)
    rest: list[str] = []
    query: list[str] = []
    for person, paths in images.items():
        order = rng.permutation(len(paths)).tolist()
        drawn = set(order[: max(0, min(count(person, len(paths)), len(paths) - 1))])
        rest += [path for i, path in enumerate(paths) if i not in drawn]
        query += [path for i, path in enumerate(paths) if i in drawn]
    return Halves(tuple(rest), tuple(query))


def spread_queries(images: Mapping[str, Sequence[str]], count: int) -> Halves:
    """Take ``count`` queries of every person, evenly spaced over the images as people count them; one always stays."""
    rest: list[str] = []
    query: list[str] = []
    for paths in images.values():
        frames = sorted(paths, key=natural_key)
        taken = set(spread(min(count, len(frames) - 1), len(frames)))
        rest += [path for i, path in enumerate(frames) if i not in taken]
        query += [path for i, path in enumerate(frames) if i in taken]
    return Halves(tuple(rest), tuple(query))


def seen_and_cross(name: str, seed: int, halves: Halves, known_people: frozenset[str]) -> dict[str, Split]:
    """Make the two splits of a face set: train and search in it, or search in it with a model of another set."""
    seen = Split(f"{name}-seen", "seen", seed, halves.rest, halves.rest, halves.query)
    return {"seen": seen, "unseen": cross_set_split(seen, known_people, name=f"{name}-unseen")}
