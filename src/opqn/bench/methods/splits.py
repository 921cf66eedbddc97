"""The divisions of a comparison's data, and the check that no query is known from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from opqn.bench.methods.suites import Draw
from opqn.data.folders import ImageFolder, scan_folder
from opqn.data.splits import Split, Splits, make_splits, person_of
from opqn.errors import DataError

SHOWN: Final = 3  # of offending images or people, in a message


def content_hashes(root: Path, paths: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256, in hex, of every file: path -> hash.

    Raises:
        DataError: a file cannot be read.
    """

    def of(path: str) -> str:
        try:
            return hashlib.sha256((root / path).read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"cannot read {root / path}: {error.strerror}; prepare the data set anew") from error

    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(of, paths), strict=True))


def draw_splits(root: Path, name: str, draw: Draw, seed: int, hashes: dict[str, str]) -> Splits:
    """Divide a folder by a seed. Of images with the same bytes only the first, by path, is used.

    Args:
        root: folder of a folder a person.
        name: of the splits.
        draw: how.
        seed: of all draws.
        hashes: of :func:`content_hashes`, of all images of the folder.

    Raises:
        DataError: too few people or images.
    """
    folder = scan_folder(root)
    first: dict[str, str] = {}
    for path in folder.paths:
        first.setdefault(hashes[path], path)
    by_person: dict[str, list[str]] = {}
    for path in first.values():
        by_person.setdefault(person_of(path), []).append(path)
    rng = np.random.default_rng(seed)
    kept: list[str] = []
    for person in sorted(by_person):
        images = by_person[person]
        if len(images) >= draw.min_images:
            chosen = rng.permutation(len(images))[: draw.images_per_person]
            kept += [images[i] for i in sorted(chosen.tolist())]
    return make_splits(
        ImageFolder(folder.root, tuple(kept), tuple(map(person_of, kept))),
        name=name,
        seed=seed if draw.people_seed is None else draw.people_seed,
        unseen_people=draw.unseen_people,
        queries_per_person=draw.queries_per_person,
        min_images=min(draw.min_images, draw.images_per_person),
    )


def check_split(split: Split, hashes: Mapping[str, str], trained: Collection[str]) -> None:
    """Check by content that no query of a split is in its gallery or among the images trained on.

    That none is by path, :class:`opqn.data.splits.Split` has checked itself.

    Args:
        split: to test with.
        hashes: of :func:`content_hashes`, of its gallery and queries.
        trained: hashes of the images trained on.

    Raises:
        DataError: one is.
    """
    for others, where in (({hashes[path] for path in split.gallery}, "in the gallery"), (set(trained), "trained on")):
        shared = [path for path in split.query if hashes[path] in others]
        if shared:
            raise DataError(
                f"split {split.name!r}: {len(shared)} queries have the same bytes as images {where}: {_some(shared)}; "
                "prepare the data set anew with `opqn data prepare`, which leaves copies out"
            )


def check_strangers(split: Split, train: Split) -> None:
    """Check that nobody in an ``unseen`` split of a folder is trained on by another split of the same folder.

    Raises:
        DataError: somebody is.
    """
    known = set(map(person_of, train.train))
    shared = sorted(known.intersection(map(person_of, (*split.gallery, *split.query))))
    if shared:
        raise DataError(
            f"split {split.name!r} is to test with people never trained on, and split {train.name!r} trains on "
            f"{len(shared)} of them: {_some(shared)}; prepare the data set anew with `opqn data prepare`"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
