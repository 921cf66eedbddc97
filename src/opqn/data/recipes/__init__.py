"""Recipes: from a data set as downloaded to a folder a person, split files and a SOURCE.md. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Final

from opqn.data.recipes.cross_set import comparable_name, cross_set_split, read_names
from opqn.data.recipes.faces import CFW_60K, FACESCRUB, IMFDB, LFW, ORL
from opqn.data.recipes.general import CIFAR_10, DIGITS, FASHION_MNIST, IMAGENET_100
from opqn.data.recipes.recipe import Counts, Duplicate, OnProgress, Prepared, Recipe
from opqn.data.recipes.vggface2 import VGGFACE2
from opqn.data.recipes.youtube import YOUTUBE_FACES
from opqn.errors import ConfigError

__all__ = [
    "RECIPES",
    "Counts",
    "Duplicate",
    "OnProgress",
    "Prepared",
    "Recipe",
    "comparable_name",
    "cross_set_split",
    "get_recipe",
    "prepare",
    "read_names",
]

RECIPES: Final = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            *(FACESCRUB, CFW_60K, YOUTUBE_FACES, VGGFACE2, LFW, IMFDB, ORL),
            *(CIFAR_10, IMAGENET_100, FASHION_MNIST, DIGITS),
        )
    }
)
"""Every recipe, by the name that the command line takes."""


def get_recipe(name: str) -> Recipe:
    """Return the recipe of a data set.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no recipe for {name!r}{hint} There are {', '.join(RECIPES)}")
    return RECIPES[name]


def prepare(
    name: str,
    source: str | Path | Sequence[str | Path] | None,
    out: str | Path,
    *,
    seed: int = 0,
    allow_incomplete: bool = False,
    known_people: Iterable[str] = (),
    on_progress: OnProgress = lambda _done, _all: None,
) -> Prepared:
    """Turn a data set as downloaded into ``out/images``, ``out/splits/*.json`` and ``out/SOURCE.md``.

    Image files are copied byte by byte; sets that come as arrays become PNG files. Every image is read once to see
    whether it is whole, and those that are not are left out and listed. Of images with the same bytes the first, by
    path, goes into the splits, and the others are listed: no query's picture is in the gallery, or trained on, under
    another name. A call after an interruption goes on; whole files are not written again. The same source and seed give
    the same splits.

    Args:
        name: of :data:`RECIPES`.
        source: the folder or the archives (tar or zip) as downloaded, or a folder of such archives; None for sets that
            an installed package brings.
        out: folder to fill.
        seed: of every draw.
        allow_incomplete: go on where the counts are not the known ones. SOURCE.md and the result say so.
        known_people: names of people that a model to be tested was trained on, such as :func:`read_names` returns; the
            split ``unseen`` leaves them out.
        on_progress: called with how many images are done, and how many there are.

    Raises:
        ConfigError: an unknown name, a source too many or too few, a negative seed, ``out`` inside ``source``.
        DataError: nothing of the set there, wrong counts, or an ``out`` that holds other images.
        CorruptFileError: (an archive) damaged or hostile.
        OpqnError: the disk is full or ``out`` cannot be written.
    """
    paths = (source,) if isinstance(source, (str, Path)) else tuple(source or ())
    return get_recipe(name).prepare(
        paths or None,
        out,
        seed=seed,
        allow_incomplete=allow_incomplete,
        known_people=frozenset(known_people),
        on_progress=on_progress,
    )
