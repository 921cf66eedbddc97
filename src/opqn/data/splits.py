"""Split files: which images are trained on, searched in and searched for.

Two protocols. *Seen* identities: the gallery is the training images, the queries are held-out images of the same
people. *Unseen* identities: gallery and queries come from people that were never trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, cast, get_args

import numpy as np

from opqn._files import atomic_write_bytes
from opqn.data.folders import ImageFolder, name_sort_key, path_problem
from opqn.errors import ConfigError, CorruptFileError, DataError

Protocol = Literal["seen", "unseen"]
FORMAT: Final = "opqn-split"
FORMAT_VERSION: Final = 1
_KEYS: Final = frozenset(("format", "version", "name", "protocol", "seed", "train", "gallery", "query", "hash"))


def person_of(path: str) -> str:
    """Return the person of a relative path: its first folder."""
    return path.partition("/")[0]


@dataclass(frozen=True)
class Split:
    """Relative paths by role. It is checked when it is made, so a Split that exists is a fair one.

    Args:
        name: a label for people to read.
        protocol: ``seen`` or ``unseen``.
        seed: what the lists were drawn with.
        train: images to train on. Empty only in ``unseen``: a data set that is evaluated on but not trained on.
        gallery: images to search in; in ``seen`` the same tuple as ``train``. Order decides the ids.
        query: images to search for; none of them is in ``train`` or ``gallery``.

    Raises:
        DataError: an empty name or role, a path that could lead out of its root, a path that is listed twice or has two
            roles, or, in ``unseen``, a person who is trained on and searched for. The message names the first few.
    """

    name: str
    protocol: Protocol
    seed: int
    train: tuple[str, ...]
    gallery: tuple[str, ...]
    query: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what is not a fair split."""
        if not self.name.strip() or not self.name.isprintable():
            raise DataError(f"a split's name is {self.name!r}; give it one of printable characters")
        if self.protocol not in get_args(Protocol):
            raise DataError(f"split {self.name!r}: protocol is {self.protocol!r}; it is 'seen' or 'unseen'")
        if self.protocol == "seen" and self.gallery != self.train:
            raise DataError(
                f"split {self.name!r}: in the seen protocol the gallery is the training images, in their order"
            )
        empty = [role for role in ("train", "gallery", "query") if not getattr(self, role)]
        if empty and (self.protocol == "seen" or empty != ["train"]):
            raise DataError(f"split {self.name!r}: no images to use as {' and '.join(empty)}")
        for role in ("train", "gallery", "query"):
            self._check_paths(role, getattr(self, role))
        train, gallery, query = set(self.train), set(self.gallery), set(self.query)
        self._refuse(train & query, "both trained on and a query")
        self._refuse(gallery & query, "both in the gallery and a query")
        if self.protocol == "unseen":
            self._refuse(train & gallery, "both trained on and in the gallery")
            tested = {person_of(path) for path in gallery | query}
            self._refuse({person_of(path) for path in train} & tested, "both trained on and tested", "people")

    def _check_paths(self, role: str, paths: Sequence[str]) -> None:
        for path in paths:
            problem = path_problem(path)
            if problem:
                raise DataError(f"split {self.name!r}: path {path!r} in {role}: {problem}")
        if len(set(paths)) < len(paths):
            twice = {path for path, count in Counter(paths).items() if count > 1}
            self._refuse(twice, f"more than once in {role}")

    def _refuse(self, shared: set[str], why: str, what: str = "images") -> None:
        if shared:
            raise DataError(f"split {self.name!r}: {len(shared)} {what} are {why}: {_some(sorted(shared))}")

    @cached_property
    def hash(self) -> str:
        """SHA-256, in hex, of protocol, seed and the lists in their order. The name is left out: it changes no result.

        Hashed is the UTF-8 of the JSON object with these five keys sorted, no spaces, non-ASCII characters escaped, and
        ``gallery`` null in the seen protocol.
        """
        text = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        gallery = None if self.protocol == "seen" else self.gallery
        return {
            "protocol": self.protocol,
            "seed": self.seed,
            "train": self.train,
            "gallery": gallery,
            "query": self.query,
        }

    def save(self, path: str | Path) -> None:
        """Write the split file, whole or not at all.

        Raises:
            OpqnError: the disk is full or the place cannot be written; an old file is unchanged.
        """
        document = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "name": self.name,
            "hash": self.hash,
            **self._content(),
        }
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        atomic_write_bytes(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path, root: str | Path | None = None) -> Self:
        """Read and check a split file.

        Args:
            path: the file.
            root: folder that the paths start from; given, every image must exist.

        Raises:
            DataError: no such file, images that are missing below ``root``, or a split that is not a fair one.
            CorruptFileError: not a split file, one of another version, or one whose lists were changed.
        """
        path = Path(path)
        document = _read(path)
        protocol = _field(path, document, "protocol", str)
        gallery = "train" if protocol == "seen" and document["gallery"] is None else "gallery"
        try:
            split = cls(
                name=_field(path, document, "name", str),
                protocol=cast("Protocol", protocol),
                seed=_field(path, document, "seed", int),
                train=_strings(path, document, "train"),
                gallery=_strings(path, document, gallery),
                query=_strings(path, document, "query"),
            )
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if split.hash != document["hash"]:
            raise CorruptFileError(
                f"{path}: its hash does not match its lists, so it was changed or damaged; make it anew, or take the "
                "original"
            )
        if root is not None:
            missing = [
                image
                for image in dict.fromkeys((*split.train, *split.gallery, *split.query))
                if not os.path.isfile(f"{root}/{image}")  # noqa: PTH113 (a Path per file is slow)
            ]
            if missing:
                raise DataError(
                    f"{path}: {len(missing)} images are missing below {root}: {_some(missing)}; give the folder that "
                    "the split was made from"
                )
        return split


class Splits(NamedTuple):
    """The two splits of a folder; they train on the same images."""

    seen: Split
    unseen: Split


class ValidationSplit(NamedTuple):
    """Training images, and the gallery and queries to choose a model by."""

    train: tuple[str, ...]
    gallery: tuple[str, ...]
    query: tuple[str, ...]


def make_splits(
    folder: ImageFolder,
    *,
    name: str,
    seed: int = 0,
    unseen_people: float = 0.2,
    queries_per_person: float = 0.2,
    min_images: int = 1,
) -> Splits:
    """Divide a folder: some people are never trained on, and of everyone some images become queries.

    With ``people`` the sorted names and ``rng = numpy.random.default_rng(seed)``, the first ``round(unseen_people *
    len(people))`` of ``rng.permutation(len(people))`` are the unseen people. The queries are drawn from the same
    ``rng``, person by person, the seen people first. A person with one image has no query: in ``seen`` the image is
    trained on, in ``unseen`` it is a distractor in the gallery.

    Args:
        folder: see :func:`opqn.data.folders.scan_folder`.
        name: label; ``-seen`` and ``-unseen`` are added.
        seed: at least 0.
        unseen_people: share of the people, between 0 and 1.
        queries_per_person: below 1 a share of each person's images, else a count. At least one image becomes a query
            and at least one does not.
        min_images: people with fewer images are left out.

    Raises:
        ConfigError: an argument out of range.
        DataError: fewer than two people to train on, or no queries; the message says why.
    """
    if seed < 0 or min_images < 1:
        raise ConfigError(f"seed is {seed} and min_images {min_images}; they must be at least 0 and 1")
    if not 0 < unseen_people < 1:
        raise ConfigError(f"unseen_people is {unseen_people}; it is a share of the people, above 0 and below 1")
    if not (0 < queries_per_person < 1 or (queries_per_person >= 1 and float(queries_per_person).is_integer())):
        raise ConfigError(
            f"queries_per_person is {queries_per_person}; it is a share below 1 or a whole number above 0"
        )
    images = {person: paths for person, paths in _by_person(folder.paths).items() if len(paths) >= min_images}
    people = sorted(images, key=name_sort_key)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(people))
    num_unseen = round(unseen_people * len(people))
    unseen = {people[i] for i in order[:num_unseen]}
    if len(people) - num_unseen < 2:
        raise DataError(
            f"{len(people)} people with {min_images} or more images in {folder.root}, {num_unseen} of them set aside "
            "as unseen: fewer than 2 are left to train on; add people, or lower unseen_people or min_images"
        )
    seen_parts = [_hold_out(images[person], queries_per_person, rng) for person in people if person not in unseen]
    unseen_parts = [_hold_out(images[person], queries_per_person, rng) for person in people if person in unseen]
    for parts, what in ((seen_parts, "seen"), (unseen_parts, "unseen")):
        if not any(query for _, query in parts):
            raise DataError(_why_no_queries(images, what, num_unseen, unseen_people))
    train, seen_query = _join(seen_parts)
    gallery, unseen_query = _join(unseen_parts)
    return Splits(
        Split(f"{name}-seen", "seen", seed, train, train, seen_query),
        Split(f"{name}-unseen", "unseen", seed, train, gallery, unseen_query),
    )


def validation_split(train: Sequence[str], *, protocol: Protocol, share: float, seed: int) -> ValidationSplit:
    """Set some of the training images aside to choose a model by; the split's own queries stay untouched.

    Args:
        train: the training images.
        protocol: ``unseen``: a share of the people with two or more images, at least two people, leave the training;
            half of their images, rounded down, are queries, the rest is the gallery. ``seen``: of every person with
            three or more images a share of them, at least one, becomes queries; the gallery is the images left to train
            on.
        share: between 0 and 1.
        seed: at least 0.

    Raises:
        ConfigError: an argument out of range.
        DataError: too few people or images for it; the message says which other choice there is.
    """
    if protocol not in get_args(Protocol) or not 0 < share < 1 or seed < 0:
        raise ConfigError(
            f"validation {protocol!r} with share {share} and seed {seed}; use 'seen' or 'unseen', a share above 0 and "
            "below 1, and a seed of at least 0"
        )
    rng = np.random.default_rng(seed)
    images = _by_person(train)
    people = sorted(images, key=name_sort_key)
    if protocol == "seen":
        parts = [
            _hold_out(images[person], share, rng) if len(images[person]) >= 3 else (images[person], [])
            for person in people
        ]
        kept, query = _join(parts)
        if not query:
            raise DataError("no person has 3 images to validate with; set train.validation to 'none'")
        return ValidationSplit(kept, kept, query)
    able = [person for person in people if len(images[person]) >= 2]
    count = max(2, round(share * len(able)))
    if len(able) < 2 or len(people) - count < 2:
        raise DataError(
            f"{len(people)} people to train on, {len(able)} of them with 2 or more images, are too few to set {count} "
            "aside for validation; set train.validation to 'seen' or 'none'"
        )
    chosen = {able[i] for i in rng.permutation(len(able))[:count]}
    gallery, query = _join(
        [_take(images[person], len(images[person]) // 2, rng) for person in people if person in chosen]
    )
    rest = tuple(path for person in people if person not in chosen for path in images[person])
    return ValidationSplit(rest, gallery, query)


def _by_person(paths: Iterable[str]) -> dict[str, list[str]]:
    images: dict[str, list[str]] = {}
    for path in paths:
        images.setdefault(person_of(path), []).append(path)
    return images


def _hold_out(paths: list[str], queries: float, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    wanted = round(queries * len(paths)) if queries < 1 else int(queries)
    return _take(paths, min(max(wanted, 1), len(paths) - 1), rng)


def _take(paths: list[str], count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Draw ``count`` paths; return the rest and the drawn, both in their old order."""
    drawn = set(rng.permutation(len(paths))[:count].tolist())
    return [p for i, p in enumerate(paths) if i not in drawn], [p for i, p in enumerate(paths) if i in drawn]


def _join(parts: list[tuple[list[str], list[str]]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(path for rest, _ in parts for path in rest), tuple(path for _, drawn in parts for path in drawn)


def _why_no_queries(images: dict[str, list[str]], what: str, num_unseen: int, unseen_people: float) -> str:
    if all(len(paths) == 1 for paths in images.values()):
        return (
            "every person has one image, so there is nothing to search for; at least two images of a person are needed"
        )
    if not num_unseen:
        return f"unseen_people {unseen_people} of {len(images)} people is none; raise it or add people"
    return f"every {what} person has one image, so there is no query; add images, or set min_images to 2"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the split file {path}: {error.strerror}; `opqn data` makes one") from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not a split file: {error}; `opqn data` makes one") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CorruptFileError(f"{path} is not a split file; `opqn data` makes one")
    if document.get("version") != FORMAT_VERSION:
        raise CorruptFileError(
            f"{path} has format version {document.get('version')!r} and this opqn reads {FORMAT_VERSION}; upgrade "
            "opqn, or make the file anew"
        )
    if document.keys() != _KEYS:
        odd = ", ".join(sorted(document.keys() ^ _KEYS))
        raise CorruptFileError(f"{path}: keys missing or unknown: {odd}; make the file anew")
    return document


def _field(path: Path, document: dict[str, Any], key: str, kind: type) -> Any:
    value = document[key]
    if type(value) is not kind:  # not isinstance: True is an int
        raise CorruptFileError(f"{path}: {key} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _strings(path: Path, document: dict[str, Any], key: str) -> tuple[str, ...]:
    values = _field(path, document, key, list)
    if not all(isinstance(value, str) for value in values):
        raise CorruptFileError(f"{path}: {key} must be a list of strings")
    return tuple(values)
