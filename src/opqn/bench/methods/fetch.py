"""The data of a comparison: what is made or comes with a package is fetched, what was downloaded is prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from opqn.bench.methods.suites import Suite
from opqn.data.recipes import RECIPES, prepare
from opqn.errors import ConfigError

SOURCE_FILE: Final = "SOURCE.md"  # what is written last, so that a set which has it is whole
SYNTHETIC: Final = "synthetic"
SYNTHETIC_PEOPLE: Final = 400
SYNTHETIC_IMAGES: Final = 24
SYNTHETIC_SEED: Final = 1  # settings were chosen with the people of seed 0


class Source(NamedTuple):
    """A data set as downloaded."""

    name: str
    path: Path


def parse_source(text: str) -> Source:
    """Read ``NAME=PATH``.

    Raises:
        ConfigError: it is not of that form.
    """
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise ConfigError(f"--source {text!r} is not of the form NAME=PATH, such as cifar-10=cifar-10-binary.tar.gz")
    return Source(name, Path(path).expanduser())


def fetch(
    suite: Suite, data: Path, sources: Sequence[Source] = (), on_stage: Callable[[str], None] = lambda _stage: None
) -> None:
    """Fill ``data/NAME`` for those data sets of a suite that are not there and can be had.

    Synthetic faces are drawn (extra ``synthetic``), ORL and digits come with packages, and ``sources`` are prepared,
    those of one name together. What was begun before goes on.

    Raises:
        ConfigError: a source of a data set that the suite does not have, or that needs none.
        DataError: a source is not the data set.
        OpqnError: a package is missing, or the disk is full.
    """
    names = [part.name for part in suite.data]
    # Sets to test on that nothing is trained on are wanted too.
    names += [where.data for part in suite.data for where in part.tests if where.data not in names]
    given: dict[str, list[Path]] = {}
    for source in sources:
        if source.name not in names:
            raise ConfigError(f"suite {suite.name!r} has no data set {source.name!r}; it has {', '.join(names)}")
        if source.name == SYNTHETIC or not _needs_source(source.name):
            raise ConfigError(f"{source.name} is drawn or comes with an installed package; leave its --source out")
        given.setdefault(source.name, []).append(source.path)
    for name in dict.fromkeys(names):
        folder = data / name
        if (folder / SOURCE_FILE).is_file():
            continue
        if name == SYNTHETIC:
            on_stage(f"drawing {SYNTHETIC_PEOPLE} synthetic people with {SYNTHETIC_IMAGES} images each: {folder}")
            from opqn.data.synthetic import synthesize  # noqa: PLC0415 (needs the extra)

            synthesize(folder, SYNTHETIC_PEOPLE, SYNTHETIC_IMAGES, SYNTHETIC_SEED)
        elif name in given or not _needs_source(name):
            on_stage(f"preparing {name}: {folder}")
            prepare(name, given.get(name), folder)


def _needs_source(name: str) -> bool:
    return name not in RECIPES or RECIPES[name].needs_source
