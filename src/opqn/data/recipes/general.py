"""Recipes of sets that are not faces: CIFAR-10, ImageNet-100, Fashion-MNIST and the digits of scikit-learn.

A class stands where a person does elsewhere.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opqn.data.recipes._draw import by_person, divide, draw_queries
from opqn.data.recipes._layout import lay_out, parent
from opqn.data.recipes._source import MAX_FILE_BYTES, open_source
from opqn.data.recipes.faces import from_plan
from opqn.data.recipes.recipe import Counts, Plan, Recipe, Request
from opqn.data.splits import Split, person_of
from opqn.errors import CorruptFileError, DataError

_CIFAR_CLASSES: Final = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR_FILE: Final = re.compile(r"(?:^|/)(data_batch_[1-5]|test_batch)(\.bin)?$")
_CIFAR_RECORD: Final = 1 + 3 * 32 * 32
_FASHION_CLASSES: Final = (
    "t-shirt-top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
_FASHION_FILE: Final = re.compile(r"(?:^|/)(train|t10k)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?$")


def plan_cifar10(request: Request, *, queries: int = 100, train: int = 500) -> Plan:
    """Plan CIFAR-10 for deep hashing: of each class ``queries`` ask, ``train`` others train.

    The gallery is all images but the queries. Only the binary version is read: the one for Python is a pickle, which
    can run any program.
    """
    source = open_source(request.source, lambda path: _CIFAR_FILE.search(path) is not None)
    files = [entry.path for entry in source.entries if entry.path.endswith(".bin")]
    if not files:
        raise DataError(
            "this is CIFAR-10 in Python's pickle format, which can run any program and is not read; download the "
            "binary version, cifar-10-binary.tar.gz"
        )
    images: dict[str, NDArray[np.uint8]] = {}
    for path, data in source.read(files):
        match = _CIFAR_FILE.search(path)
        batch = match[1] if match else path
        records = np.frombuffer(data[: len(data) // _CIFAR_RECORD * _CIFAR_RECORD], np.uint8).reshape(-1, _CIFAR_RECORD)
        if len(data) % _CIFAR_RECORD or (records[:, 0] >= len(_CIFAR_CLASSES)).any():
            raise CorruptFileError(f"{path} is no whole file of CIFAR-10's binary version; download it again")
        for i, record in enumerate(records):
            pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            images[f"{_CIFAR_CLASSES[record[0]]}/{batch}-{i:05d}.png"] = pixels

    def splits(kept: tuple[str, ...]) -> dict[str, Split]:
        rest, query = draw_queries(by_person(kept), lambda _class, _images: queries, request.seed)
        drawn = draw_queries(by_person(rest), lambda _class, _images: train, request.seed).query
        return _with_database("cifar-10", request.seed, drawn, rest, query)

    return _array_plan(images, splits, (f"Drawn by the seed: {queries} queries and {train} training images a class.",))


def plan_imagenet100(request: Request, *, classes: int = 100, train: int = 130) -> Plan:
    """Plan ImageNet-100: of each class ``train`` images train, validation images ask.

    The gallery is all training images. Of a source with more classes, ``classes`` are drawn by the seed.
    """
    layout = lay_out(open_source(request.source), parent)
    trained, tested = layout.parts()
    both = sorted(trained & tested)
    if len(both) < 2:
        raise DataError(
            "ImageNet needs train/CLASS/IMAGE and val/CLASS/IMAGE, and here no two classes have both; sort the "
            "validation images into folders of classes and give the folder above train and val"
        )
    notes = ["The classes are those of the source; whether they are the published 100 was not checked."]
    if len(both) > classes:
        order = np.random.default_rng(request.seed).permutation(len(both))[:classes].tolist()
        notes = [f"{classes} of the {len(both)} classes were drawn by the seed: they are not the published ones."]
        both = [both[i] for i in order]
    chosen = frozenset(both)
    layout = layout.only(lambda image: image.part is not None and person_of(image.target) in chosen)
    asks = {image.target for image in layout.placed if image.part == "test"}

    def splits(kept: tuple[str, ...]) -> dict[str, Split]:
        rest, query = divide(kept, asks)
        drawn = draw_queries(by_person(rest), lambda _class, _images: train, request.seed).query
        return _with_database("imagenet-100", request.seed, drawn, rest, query)

    notes.append(f"Drawn by the seed: {train} training images a class.")
    return Plan(layout.targets, layout.read, splits, layout.num_bytes, layout.skipped, tuple(notes))


def plan_fashion_mnist(request: Request) -> Plan:
    """Plan Fashion-MNIST: the training images train and are the gallery, the test images ask."""
    source = open_source(request.source, lambda path: _FASHION_FILE.search(path) is not None)
    arrays: dict[tuple[str, str], NDArray[np.uint8]] = {}
    for path, data in source.read(entry.path for entry in source.entries):
        match = _FASHION_FILE.search(path)
        if match:
            arrays.setdefault((match[1], match[2]), _read_idx(path, data))
    images: dict[str, NDArray[np.uint8]] = {}
    for part, role in (("t10k", "test"), ("train", "train")):
        pixels, labels = arrays.get((part, "images")), arrays.get((part, "labels"))
        if pixels is None or labels is None:
            raise DataError(f"Fashion-MNIST lacks {part}-images-idx3-ubyte.gz or {part}-labels-idx1-ubyte.gz")
        if pixels.ndim != 3 or labels.shape != pixels.shape[:1] or (labels >= len(_FASHION_CLASSES)).any():
            raise CorruptFileError(f"the images and labels of {part} do not belong together; download them again")
        for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            images[f"{_FASHION_CLASSES[label]}/{role}-{i:05d}.png"] = image

    def splits(kept: tuple[str, ...]) -> dict[str, Split]:
        train = tuple(path for path in kept if "/train-" in path)
        query = tuple(path for path in kept if "/test-" in path)
        return {"seen": Split("fashion-mnist-seen", "seen", request.seed, train, train, query)}

    return _array_plan(images, splits, ("The published division.",))


def plan_digits(request: Request, *, queries: float = 0.2) -> Plan:
    """Plan the digits that scikit-learn brings: of each digit the share ``queries`` asks."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (half a second that only this set needs)

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), of 0 to 16
    images = {f"{label}/{i:04d}.png": pixels[i] for i, label in enumerate(digits.target.tolist())}

    def splits(kept: tuple[str, ...]) -> dict[str, Split]:
        rest, query = draw_queries(by_person(kept), lambda _digit, count: round(queries * count), request.seed)
        return {"seen": Split("digits-seen", "seen", request.seed, rest, rest, query)}

    return _array_plan(images, splits, (f"{queries:.0%} of each digit's images, drawn by the seed, ask.",))


def _with_database(
    name: str, seed: int, train: Sequence[str], database: Sequence[str], query: Sequence[str]
) -> dict[str, Split]:
    """Make the two splits of a set that is searched in more than it trains on: one to train, one to evaluate with."""
    return {
        "seen": Split(f"{name}-seen", "seen", seed, tuple(train), tuple(train), tuple(query)),
        "database": Split(f"{name}-database", "seen", seed, tuple(database), tuple(database), tuple(query)),
    }


def _array_plan(
    images: Mapping[str, NDArray[np.uint8]],
    splits: Callable[[tuple[str, ...]], Mapping[str, Split]],
    notes: tuple[str, ...],
) -> Plan:
    def read() -> Iterator[tuple[str, bytes]]:
        for target in targets:
            file = io.BytesIO()
            Image.fromarray(images[target]).save(file, "PNG")
            yield target, file.getvalue()

    targets = tuple(sorted(images))
    return Plan(targets, read, splits, sum(image.nbytes for image in images.values()), notes=notes)


def _read_idx(path: str, data: bytes) -> NDArray[np.uint8]:
    """Read the format of MNIST: two zeros, 8 for bytes, the number of dimensions, each as 4 bytes, and the bytes."""
    if path.endswith(".gz"):
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_FILE_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise CorruptFileError(f"{path} is not a whole gzip file: {error}; download it again") from error
    num_dims = data[3] if len(data) > 3 else 0
    shape = tuple(np.frombuffer(data[4 : 4 + 4 * num_dims], ">u4").tolist()) if len(data) >= 4 + 4 * num_dims else ()
    values = np.frombuffer(data, np.uint8)[4 + 4 * num_dims :]
    if data[:3] != b"\0\0\x08" or not 1 <= num_dims <= 3 or len(values) != int(np.prod(shape, dtype=object)):
        raise CorruptFileError(f"{path} is no whole file of unsigned bytes in the format of MNIST; download it again")
    return values.reshape(shape)


CIFAR_10: Final = Recipe(
    name="cifar-10",
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar.html (cifar-10-binary.tar.gz)",
    terms="those stated there. A. Krizhevsky: Learning multiple layers of features from tiny images. Report, 2009.",
    counts=(Counts(10, 60_000),),
    protocol=(
        "of each class 100 images ask, 500 others train, the gallery is all 59,000 but the queries: usual in deep "
        "hashing. Train with the split seen, evaluate with the split database."
    ),
    run=from_plan(plan_cifar10),
    kind="classes",
)

IMAGENET_100: Final = Recipe(
    name="imagenet-100",
    title="ImageNet, 100 classes",
    url="https://www.image-net.org/ (after registration)",
    terms=(
        "for research and teaching that is not commercial, as agreed on registration. O. Russakovsky and others: "
        "ImageNet Large Scale Visual Recognition Challenge. IJCV 2015."
    ),
    counts=(Counts(100, None),),
    protocol=(
        "130 training images of each class train, all training images are the gallery, the 50 validation images of "
        "each class ask: usual in deep hashing since HashNet (Cao, Long, Wang, Yu 2017). Train with the split seen, "
        "evaluate with the split database."
    ),
    run=from_plan(plan_imagenet100),
    kind="classes",
)

FASHION_MNIST: Final = Recipe(
    name="fashion-mnist",
    title="Fashion-MNIST",
    url="https://github.com/zalandoresearch/fashion-mnist (on Debian the package dataset-fashion-mnist)",
    terms="MIT licence, Zalando SE. H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST. arXiv 1708.07747.",
    counts=(Counts(10, 70_000),),
    protocol="the published division: 60,000 images train and are the gallery, 10,000 ask.",
    run=from_plan(plan_fashion_mnist),
    kind="classes",
)

DIGITS: Final = Recipe(
    name="digits",
    title="Digits of scikit-learn",
    url="the Python package scikit-learn, which opqn needs anyway",
    terms="those of the UCI repository. E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. 1998.",
    counts=(Counts(10, 1_797),),
    protocol="none of the paper's: a fifth of each digit's images ask. For quick trials.",
    run=from_plan(plan_digits),
    needs_source=False,
    kind="classes",
)
