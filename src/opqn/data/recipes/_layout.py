"""From the folders of a download to ours: whose image a file is, and which part of the set it belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Literal, NamedTuple

from opqn.data.folders import name_sort_key, path_problem
from opqn.data.images import SkippedImage
from opqn.data.recipes._source import Entry, Source
from opqn.data.splits import person_of
from opqn.errors import DataError

Rule = Callable[[Sequence[str]], int]
"""Given the folders on the way to an image: which of them is the person, or -1."""
_TRAIN: Final = re.compile(r"train(ing)?(\.x\d+)?|cross_train", re.IGNORECASE)
_TEST: Final = re.compile(r"test(ing)?|query|val(idation)?(\.x)?|cross_test", re.IGNORECASE)
_NOT_PEOPLE: Final = frozenset(("face", "faces", "image", "images", "actors", "actresses", "thumbnails", "crops"))
_MAX_NAME: Final = 200
"""Bytes in a file name; file systems take 255, and files under way have longer names than finished ones."""


class Placed(NamedTuple):
    """An image of the source and where it goes."""

    origin: Entry
    target: str
    part: Literal["train", "test"] | None
    """From the name of a folder on the way, such as ``train``."""


@dataclass(frozen=True)
class Layout:
    """The images of a source, in the order of their targets."""

    source: Source
    placed: tuple[Placed, ...]
    skipped: tuple[SkippedImage, ...]

    @property
    def people(self) -> list[str]:
        """Everyone, sorted."""
        return sorted({person_of(image.target) for image in self.placed}, key=name_sort_key)

    def parts(self) -> tuple[frozenset[str], frozenset[str]]:
        """People of the images in training folders, and of those in test folders."""
        train = frozenset(person_of(image.target) for image in self.placed if image.part == "train")
        test = frozenset(person_of(image.target) for image in self.placed if image.part == "test")
        return train, test

    @property
    def is_divided(self) -> bool:
        """Whether the source is divided into training and test images of the same people already."""
        train, test = self.parts()
        return bool(train & test)

    def only(self, keep: Callable[[Placed], bool]) -> Layout:
        """Return the layout without the images that are not to be kept."""
        return Layout(self.source, tuple(image for image in self.placed if keep(image)), self.skipped)

    @property
    def targets(self) -> tuple[str, ...]:
        """Where the images go, sorted."""
        return tuple(image.target for image in self.placed)

    @property
    def num_bytes(self) -> int:
        """Room that the images take."""
        return sum(image.origin.size for image in self.placed)

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield target and content of every image, in the order of the source."""
        targets = {image.origin.path: image.target for image in self.placed}
        for path, data in self.source.read(targets):
            yield targets[path], data


def parent(folders: Sequence[str]) -> int:
    """The person is the innermost folder that is no ``faces`` or ``train``."""
    places = [i for i, name in enumerate(folders) if name.casefold() not in _NOT_PEOPLE and part_of(name) is None]
    return places[-1] if places else -1


def grandparent(folders: Sequence[str]) -> int:
    """The person is the folder above the innermost: PERSON/VIDEO/FRAME."""
    return len(folders) - 2 if len(folders) >= 2 else -1


def below_top(entries: Iterable[Entry]) -> Rule:
    """Return the rule that the person is the first folder in which the paths differ, whatever is below it."""
    folders = [names for entry in entries if (names := entry.path.split("/")[:-1])]
    first, last = min(folders, default=[]), max(folders, default=[])
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    depth = shared if any(len(names) > shared for names in folders) else shared - 1
    return lambda names: depth if 0 <= depth < len(names) else -1


def lay_out(source: Source, rule: Rule, *, prefer: Sequence[str] = ()) -> Layout:
    """Say where each image of the source goes: PERSON/, the part if there is one, folders below, IMAGE.

    Args:
        source: its entries are images.
        rule: which folder is the person.
        prefer: names of folders. Where some images lie in such a folder, others do not count: they are the same
            pictures in another form. The first name that occurs decides.

    Raises:
        DataError: no image lies in the folder of a person.
    """
    entries = source.entries
    for name in prefer:
        inside = [entry for entry in entries if f"/{name}/" in f"/{entry.path}"]
        if inside:
            entries = inside
            break
    placed: dict[str, Placed] = {}
    skipped = list(source.skipped)
    for entry in entries:
        names = entry.path.split("/")
        at = rule(names[:-1])
        if at < 0:
            skipped.append(SkippedImage(entry.path, "it lies in no folder of a person"))
            continue
        part = next((found for name in names[:-1] if (found := part_of(name))), None)
        below = [name for name in names[at + 1 : -1] if name.casefold() not in _NOT_PEOPLE and part_of(name) is None]
        target = "/".join([names[at], *([part] if part else []), *below, names[-1]])
        problem = path_problem(target) or _name_problem(target)
        if problem is None and target in placed:
            problem = f"{placed[target].origin.path} goes to the same place, {target}"
        if problem:
            skipped.append(SkippedImage(entry.path, problem))
        else:
            placed[target] = Placed(entry, target, part)
    if not placed:
        raise DataError(
            f"the images found lie in no folders of people, such as {entries[0].path}; give the folder above"
        )
    in_order = sorted(placed.values(), key=lambda image: [name_sort_key(name) for name in image.target.split("/")])
    return Layout(source, tuple(in_order), tuple(skipped))


def part_of(folder: str) -> Literal["train", "test"] | None:
    """Say which part of a set a folder is by its name, if it is one. People's names such as Val Kilmer are none."""
    if _TRAIN.fullmatch(folder):
        return "train"
    return "test" if _TEST.fullmatch(folder) else None


def natural_key(path: str) -> list[tuple[int, str]]:
    """Order paths as people count: frame 10 after frame 9."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d{1,18})", path)]


def spread(count: int, total: int) -> list[int]:
    """Return ``count`` positions among ``total``, the middles of equal stretches; all if there are fewer."""
    if total <= count:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _name_problem(target: str) -> str | None:
    names = target.split("/")
    if any(name.startswith(".") for name in names):
        return "its name or its folder's is hidden"
    if any(len(name.encode()) > _MAX_NAME for name in names):
        return f"a name on its way is longer than {_MAX_NAME} bytes"
    return None
