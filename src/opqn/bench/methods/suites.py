"""Which methods, data sets, code lengths and seeds a comparison has, and the settings that all of them share.

Every method of a suite gets the same images, network, augmentation, number of steps and weights to start from. Only the
learning rate is a method's own: it was chosen for each from the same candidates, on people held back from those that
are trained on, see the documentation.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, NamedTuple

from opqn.data.splits import Protocol
from opqn.errors import ConfigError


class Entry(NamedTuple):
    """A row of the tables: a method with settings."""

    label: str
    overrides: tuple[str, ...] = ()
    """``a.b=c``, on top of the suite's."""


class Draw(NamedTuple):
    """How a folder is divided, anew for every seed, where no recipe's split files are taken."""

    images_per_person: int
    """At most; drawn by the seed."""
    min_images: int
    """People with fewer are left out."""
    unseen_people: float
    """Share of the people that nothing is trained on."""
    queries_per_person: float = 0.2
    """Share of each person's images that ask."""


class Where(NamedTuple):
    """A split file of a prepared data set to test with."""

    data: str
    protocol: Protocol
    file: str


@dataclass(frozen=True)
class SuiteData:
    """A data set of a suite. Its folder is below the one given, as ``opqn data prepare`` fills it."""

    name: str
    draw: Draw | None = None
    """None: the recipe's split files, whatever the seed."""
    train: str = "seen"
    """Split file whose training images are trained on."""
    tests: tuple[Where, ...] = ()
    """Split files to test with; one that is missing is left out."""
    preset: str = "small"
    overrides: tuple[str, ...] = ()
    start: tuple[str, ...] | None = None
    """Settings, on top of all others, of the network that every method starts from; None: random weights."""
    about: str = ""


@dataclass(frozen=True)
class Suite:
    """A comparison."""

    name: str
    about: str
    data: tuple[SuiteData, ...]
    entries: tuple[Entry, ...]
    bits: tuple[int, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    footnotes: Mapping[str, str] = field(default_factory=dict)
    """Name of a row -> what a reader has to know of it."""


_COSFACE: Final = Entry("cosface", ("method=cosface",))

# The learning rate of each method was chosen from 0.01, 0.03 and 0.1, by the mAP of people held back from those that
# are trained on, at 48 bits.
_METHODS: Final = (
    Entry("opqn"),
    Entry("opqn-plus", ()),
    Entry("opqn-l2q", ("method=opqn-l2q",)),
    Entry("dpq", ("method=dpq",)),
    Entry("gpq", ("method=gpq",)),
    Entry("csq", ("method=csq",)),
    Entry("dcdh", ("method=dcdh",)),
    Entry("dcwh", ("method=dcwh",)),
    Entry("ddqh", ("method=ddqh",)),
    Entry("dpah", ("method=dpah",)),
    _COSFACE,
)

_FOOTNOTES: Final = {
    "dcwh": "Centres are learned by gradient and the weights of its constraints are ours, see docs/baselines.md.",
    "ddqh": "Built after its abstract, the paper was not at hand: weaker than its paper, as far as one can tell.",
    "dpah": "Built after its ideas as known to us, the paper was not at hand.",
    "gpq": "The supervised part only; batches are not drawn for its N-pair loss, so most samples have few partners.",
    "dpq": "Trained at length in its paper; its assignments start flat, as OPQN's do, and sharpen slowly.",
}


def _published(name: str, preset: str, *tests: Where, train: str = "seen") -> SuiteData:
    """Return a data set of the paper, with its recipe's splits, trained from random weights as there."""
    return SuiteData(name, train=train, tests=tests, preset=preset)


_ELSEWHERE: Final = ("facescrub", "cfw-60k", "youtube-faces")

_SMALL_START: Final = ("loss.margin=0.2", "train.learning_rate=0.05", "augment.erase=0.2")

SMOKE: Final = Suite(
    name="smoke",
    about="ORL's faces and the digits of scikit-learn, for a few seconds a training: whether everything works.",
    data=(
        SuiteData(
            "orl",
            Draw(images_per_person=10, min_images=10, unseen_people=0.25),
            preset="orl",
            overrides=("model.backbone=resnet20-32-small", "model.flip_average=false", "train.epochs=20"),
        ),
        SuiteData(
            "digits",
            Draw(images_per_person=60, min_images=10, unseen_people=0.3),
            preset="orl",
            overrides=("model.backbone=resnet20-32-small", "model.flip_average=false", "train.epochs=12"),
        ),
    ),
    entries=_METHODS,
    bits=(24, 48),
    seeds=(0, 1, 2),
    footnotes=_FOOTNOTES,
)

FACES: Final = Suite(
    name="faces",
    about="Synthetic faces, IMFDB, Labeled Faces in the Wild and Fashion-MNIST on a small network: hours on two cores.",
    data=(
        SuiteData(
            "synthetic",
            Draw(images_per_person=24, min_images=2, unseen_people=0.2),
            overrides=("train.epochs=5",),
            start=(*_SMALL_START, "train.epochs=60"),
        ),
        SuiteData(
            "imfdb",
            Draw(images_per_person=100, min_images=2, unseen_people=0.2),
            overrides=("train.epochs=5",),
            start=(*_SMALL_START, "train.epochs=50"),
        ),
        SuiteData(
            "fashion-mnist",
            Draw(images_per_person=700, min_images=2, unseen_people=0.3),
            overrides=("train.epochs=5",),
            start=(*_SMALL_START, "train.epochs=15"),
        ),
        SuiteData(
            "lfw",
            Draw(images_per_person=40, min_images=10, unseen_people=0.2),
            overrides=("train.epochs=5",),
            start=(*_SMALL_START, "train.epochs=60"),
        ),
    ),
    entries=_METHODS,
    bits=(24, 36, 48),
    seeds=(0, 1, 2),
    footnotes=_FOOTNOTES,
)

PAPER: Final = Suite(
    name="paper",
    about="The paper's four face sets and two general ones, with its networks and schedule: days on a GPU.",
    data=(
        _published("facescrub", "facescrub", Where("facescrub", "seen", "seen")),
        _published("cfw-60k", "cfw-60k", Where("cfw-60k", "seen", "seen")),
        _published("youtube-faces", "youtube-faces", Where("youtube-faces", "seen", "seen")),
        _published(
            "vggface2",
            "vggface2",
            Where("vggface2", "unseen", "unseen"),
            Where("vggface2", "seen", "seen"),
            *(Where(name, "unseen", "unseen") for name in _ELSEWHERE),
        ),
        _published("cifar-10", "cifar-10", Where("cifar-10", "seen", "database")),
        _published("imagenet-100", "imagenet-100", Where("imagenet-100", "seen", "database")),
    ),
    entries=_METHODS,
    bits=(16, 24, 36, 48, 64),
    seeds=(0, 1, 2),
    footnotes=_FOOTNOTES,
)

SUITES: Final[Mapping[str, Suite]] = MappingProxyType({suite.name: suite for suite in (SMOKE, FACES, PAPER)})


def get_suite(name: str) -> Suite:
    """Return a suite by name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"no suite {name!r}; {hint}there are {', '.join(SUITES)}")
    return SUITES[name]


def narrowed(
    suite: Suite,
    *,
    data: Sequence[str] = (),
    methods: Sequence[str] = (),
    bits: Sequence[int] = (),
    seeds: Sequence[int] = (),
) -> Suite:
    """Return a part of a suite; what is not given stays whole.

    Raises:
        ConfigError: a data set, method or length that the suite does not have.
    """
    for what, wanted, known in (
        ("data set", data, [part.name for part in suite.data]),
        ("method", methods, [entry.label for entry in suite.entries]),
        ("length", bits, list(suite.bits)),
    ):
        for name in wanted:
            if name not in known:
                raise ConfigError(f"suite {suite.name!r} has no {what} {name!r}; it has {', '.join(map(str, known))}")
    return replace(
        suite,
        data=tuple(part for part in suite.data if not data or part.name in data),
        entries=tuple(entry for entry in suite.entries if not methods or entry.label in methods),
        bits=tuple(length for length in suite.bits if not bits or length in bits),
        seeds=tuple(seeds) or suite.seeds,
    )
