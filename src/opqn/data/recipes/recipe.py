"""What a recipe is: a data set's facts, what a run of it is asked for, plans to write, and leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from opqn.data.images import SkippedImage
from opqn.data.recipes.cross_set import comparable_name
from opqn.data.splits import Split
from opqn.errors import ConfigError, DataError

OnProgress = Callable[[int, int], None]
"""Called with how many images are done, and how many there are."""


class Duplicate(NamedTuple):
    """An image that is left out of the splits, because another one has the same bytes."""

    path: str
    same_as: str


class Counts(NamedTuple):
    """How much a whole download holds; None where that is not known."""

    people: int | None
    images: int | None
    what: str = ""
    """Which form of the set this is, where there are several."""

    def fits(self, people: int, images: int) -> bool:
        """Say whether what was found is this."""
        return self.people in {None, people} and self.images in {None, images}


@dataclass(frozen=True)
class Request:
    """One call of :func:`opqn.data.recipes.prepare`."""

    source: tuple[Path, ...]
    """A folder, or archives."""
    out: Path
    seed: int = 0
    allow_incomplete: bool = False
    known_people: frozenset[str] = frozenset()
    """Names, as :func:`opqn.data.recipes.cross_set.comparable_name` writes them, that ``unseen`` leaves out."""
    on_progress: OnProgress = lambda _done, _all: None


@dataclass(frozen=True)
class Plan:
    """What is to be written, known before anything is."""

    targets: tuple[str, ...]
    """Paths below ``images``, sorted; of copies of one image the first counts."""
    read: Callable[[], Iterator[tuple[str, bytes]]]
    """Yields each target and the image file's bytes, in any order."""
    draw: Callable[[tuple[str, ...]], Mapping[str, Split]]
    """Makes the splits, by file name, of those targets that are readable and no copies."""
    num_bytes: int
    """About how much room the images take."""
    skipped: tuple[SkippedImage, ...] = ()
    """What looked like an image in the source and was left out."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know: a line each in SOURCE.md."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Other files to write beside the images."""
    found: tuple[int, int] | None = None
    """People and images of the source, where not all of them are taken; else those of the targets count."""


@dataclass(frozen=True)
class Prepared:
    """What stands in the folder now."""

    name: str
    root: Path
    """The folder of images that the paths of the splits start from."""
    splits: Mapping[str, Path]
    """Split files by what they are for: ``seen``, ``unseen``, ``database``."""
    num_people: int
    num_images: int
    skipped: tuple[SkippedImage, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    warnings: tuple[str, ...] = ()
    """What is not as published."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON takes them."""
        return {
            "set": self.name,
            "data": str(self.root),
            **{name: str(path) for name, path in self.splits.items()},
            "people": self.num_people,
            "images": self.num_images,
            "duplicates": len(self.duplicates),
            "warnings": list(self.warnings),
            "skipped": [image._asdict() for image in self.skipped],
        }


@dataclass(frozen=True)
class Recipe:
    """How one data set becomes a folder a person, split files and a SOURCE.md.

    ``run`` does it; all else is text and figures for people and for checks.
    """

    name: str
    title: str
    url: str
    """Where it is got, in words where there is no one address."""
    terms: str
    counts: tuple[Counts, ...]
    """What a whole download may hold; empty: no check."""
    protocol: str
    """The published division, and what was chosen where it is not known."""
    run: Callable[[Recipe, Request], Prepared]
    needs_source: bool = True
    takes_known_people: bool = False
    """Whether it has an ``unseen`` split that another set's model is tested with."""
    kind: str = "people"
    """What the folders are: people or classes."""

    def prepare(
        self,
        source: str | Path | tuple[str | Path, ...] | None,
        out: str | Path,
        *,
        seed: int = 0,
        allow_incomplete: bool = False,
        known_people: frozenset[str] = frozenset(),
        on_progress: OnProgress = lambda _done, _all: None,
    ) -> Prepared:
        """Do it; see :func:`opqn.data.recipes.prepare`."""
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must be at least 0")
        paths = () if source is None else source if isinstance(source, tuple) else (source,)
        if self.needs_source and not paths:
            raise ConfigError(
                f"{self.name} is not part of opqn; download it ({self.url}) and say where it is: --source"
            )
        if not self.needs_source and paths:
            raise ConfigError(f"{self.name} comes with an installed package; leave --source out")
        if known_people and not self.takes_known_people:
            raise ConfigError(f"{self.name} has no split for models of other sets, so leave --known-people out")
        _refuse_nested(paths, Path(out))
        request = Request(
            source=tuple(Path(path) for path in paths),
            out=Path(out),
            seed=seed,
            allow_incomplete=allow_incomplete,
            known_people=frozenset(map(comparable_name, known_people)),
            on_progress=on_progress,
        )
        return self.run(self, request)

    def check_counts(self, people: int, images: int, *, allow_incomplete: bool) -> tuple[str, ...]:
        """Compare what was found with what is known.

        Returns:
            Warnings: one if the set is incomplete and that is allowed.

        Raises:
            DataError: it is incomplete, or more than the set.
        """
        if not self.counts or any(counts.fits(people, images) for counts in self.counts):
            return ()
        expected = ", or ".join(_describe(counts, self.kind) for counts in self.counts)
        message = f"{self.title}: expected {expected}; found {people:,} {self.kind} and {images:,} images"
        if allow_incomplete:
            return (message,)
        raise DataError(
            f"{message}. Is the folder the right one and the download whole? To go on with what is there, allow an "
            "incomplete set (--allow-incomplete); figures then do not compare with published ones"
        )


def _refuse_nested(source: tuple[str | Path, ...], out: Path) -> None:
    inside = [path for path in source if Path(path).is_dir() and out.resolve().is_relative_to(Path(path).resolve())]
    if inside:
        raise ConfigError(f"{out} is to be filled and lies in the source {inside[0]}; choose a folder outside of it")


def _describe(counts: Counts, kind: str) -> str:
    parts = [f"{counts.people:,} {kind}"] if counts.people is not None else []
    parts += [f"{counts.images:,} images"] if counts.images is not None else []
    return " and ".join(parts) + (f" ({counts.what})" if counts.what else "")
