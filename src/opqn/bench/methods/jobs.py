"""One training of a comparison and what is tested of it: a job in, records out."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opqn._files import atomic_write_bytes
from opqn._version import __version__
from opqn.baselines.binary import BinaryQuantizer
from opqn.baselines.cosface import CosFaceHead
from opqn.baselines.hamming import HashHead
from opqn.baselines.product_quantization import ProductQuantizer
from opqn.checkpoints import STATE_FILE, has_checkpoint
from opqn.config import TrainingSettings
from opqn.data.dataset import FaceDataset
from opqn.data.images import SkippedImage
from opqn.data.splits import Protocol, Split, person_of
from opqn.evaluation import EvaluationReport, evaluate, evaluate_features
from opqn.index import CodeIndex
from opqn.model import OPQN, find_device
from opqn.training import FREE_SETTINGS, HISTORY_FILE, Progress, train
from opqn.validation import dataset_features

RECORD_VERSION: Final = 1
K: Final = (1, 5, 10, 50)
TIMED_IMAGES: Final = 128
TIMED_QUERIES: Final = 256
REPEATS: Final = 3
COSFACE: Final = "cosface"
KEY_FILE: Final = "job"  # in a training's folder: the key of the job that it is of
PACKED: Final = 8  # bits of a byte


class Test(NamedTuple):
    """Images to search with and in."""

    data: str
    """What the tables call the data set; another one than that trained on where a model is tested elsewhere."""
    protocol: Protocol
    root: Path
    split: Split


class Shape(NamedTuple):
    """M x K of a code length."""

    num_books: int
    num_words: int

    @property
    def num_bits(self) -> int:
        """M * log2(K)."""
        return self.num_books * (self.num_words.bit_length() - 1)


@dataclass(frozen=True)
class Job:
    """A training, and what it is tested with."""

    data: str
    entry: str
    bits: int | None
    """None for ``cosface``, whose features are compressed to every length."""
    seed: int
    settings: TrainingSettings
    root: Path
    train: Split
    tests: tuple[Test, ...]
    shapes: tuple[Shape, ...]
    """Lengths to compress features to, for ``cosface``."""
    folder: Path
    """Of the training; only its model is kept."""
    started_from: str | None = None
    """Fingerprint of the model that ``settings.train.start`` names."""

    @property
    def name(self) -> str:
        """What it is called on the screen and on the disk."""
        length = "" if self.bits is None else f"-{self.bits}"
        return f"{self.data}/{self.entry.replace(', ', '-').replace(' ', '-')}{length}-seed{self.seed}"

    @property
    def key(self) -> str:
        """sha256, in hex, of everything that decides the result; a record with another key is not used."""
        decides = {
            "version": RECORD_VERSION,
            "entry": self.entry,
            "settings": self.settings.model_dump(mode="json", exclude={"train": FREE_SETTINGS}),
            "started_from": self.started_from,
            "train": self.train.hash,
            "tests": [[test.data, test.protocol, test.split.hash] for test in self.tests],
            "shapes": self.shapes,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


class Codes(NamedTuple):
    """A way from features to codes and tables."""

    name: str
    num_bits: int
    num_books: int
    num_words: int
    is_binary: bool
    encode: Any
    tables: Any


class Trained(NamedTuple):
    """What a training left."""

    model: OPQN
    seconds: float
    """CPU seconds of all threads on a CPU, where other work on the machine does not count; else by the clock."""
    skipped: tuple[SkippedImage, ...]


def train_job(job: Job, on_progress: Callable[[Progress], None] | None = None) -> Trained:
    """Train, or go on with a training of the same job; what another one left in the folder is deleted.

    Raises:
        TrainingInterruptedError: asked to stop; the same call goes on.
        OpqnError: the training went astray, images cannot be read, the disk is full.
    """
    if not is_of(job):
        shutil.rmtree(job.folder, ignore_errors=True)
        atomic_write_bytes(job.folder / KEY_FILE, job.key.encode())
    before = _steps_before(job.folder)
    begin = time.process_time(), time.monotonic()
    result = train(job.settings, job.root, job.train, job.folder, resume=True, on_progress=on_progress)
    clocks = time.process_time() - begin[0], time.monotonic() - begin[1]
    seconds = clocks[0] if job.settings.train.device == "cpu" else clocks[1]
    last = result.history[-1]
    if before == last["step"]:
        seconds = last["seconds"]  # by the clock; nothing else is known of a training that was over before
    elif before:
        seconds *= last["step"] / (last["step"] - before)  # as if the steps before had been as fast
    return Trained(result.model, seconds, result.skipped)


def is_of(job: Job) -> bool:
    """Say whether the job's folder holds what this job left, not one of the same name with other settings."""
    try:
        return (job.folder / KEY_FILE).read_bytes() == job.key.encode()
    except OSError:
        return False


def epochs_since(job: Job, moment: float) -> int:
    """Return how many epochs a training has behind it; 0 if none of them ended after a moment, in seconds of Unix."""
    history = job.folder / HISTORY_FILE
    try:
        return history.read_bytes().count(b"\n") if history.stat().st_mtime >= moment else 0
    except OSError:
        return 0  # not begun, or over and away


def clean(job: Job) -> None:
    """Delete all that only a training which is not over needs."""
    for part in ("checkpoint", "best"):
        shutil.rmtree(job.folder / part, ignore_errors=True)


def _steps_before(folder: Path) -> int:
    """Return how many steps the checkpoint of a training has behind it; 0 without one, or where it cannot be read."""
    if not has_checkpoint(folder / "checkpoint"):
        return 0
    try:
        return int(json.loads((folder / "checkpoint" / STATE_FILE).read_bytes())["progress"]["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0  # the training itself says what is wrong with it


def measure(job: Job, trained: Trained) -> list[dict[str, Any]]:
    """Test a trained model, and return a record for each data set tested on."""
    model, device = trained.model, find_device(job.settings.train.device)
    model.to(device)
    tested = [_Tested(model, test) for test in job.tests]
    ways = _ways(model, job)
    model.to("cpu")  # where encoding is timed
    records = []
    for data in dict.fromkeys(test.data for test in job.tests):
        here = [part for part in tested if part.test.data == data]
        skipped = {(job.root, image.path) for image in trained.skipped}.union(*(part.skipped for part in here))
        records.append(
            {
                "key": job.key,
                "data": data,
                "entry": job.entry,
                "bits": job.bits,
                "seed": job.seed,
                "settings": job.settings.model_dump(mode="json", exclude={"train": {"start"}}),
                "started_from": job.started_from,
                "versions": {"opqn": __version__, "torch": torch.__version__, "numpy": np.__version__},
                "cpu": f"{platform.machine()}, {torch.get_num_threads()} thread a training",
                "device": str(device),
                "splits": {part.test.protocol: describe(job.train, part.test.split) for part in here},
                "train_seconds": round(trained.seconds, 2),
                "skipped": len(skipped),
                "features": {part.test.protocol: part.features() for part in here},
                "rows": [_row(codes, model, here) for codes in ways],
            }
        )
    return records


def describe(train: Split, split: Split) -> dict[str, Any]:
    """Return the hash of a split, and how many images and people it has."""
    return {
        "hash": split.hash,
        "num_train": len(train.train),
        "num_gallery": len(split.gallery),
        "num_queries": len(split.query),
        "num_people": len({person_of(path) for path in split.query}),
    }


class _Tested:
    """Features and labels of a test's gallery and queries."""

    def __init__(self, model: OPQN, test: Test) -> None:
        self.test = test
        self.images = _load(test.root, test.split.gallery, model.config.resize)
        queries = _load(test.root, test.split.query, model.config.resize)
        self.gallery, self.labels = dataset_features(model, self.images)
        self.query, self.query_labels = dataset_features(model, queries)
        self.skipped = {(test.root, image.path) for image in (*self.images.skipped, *queries.skipped)}

    def features(self) -> float:
        """Return the mAP of uncompressed features."""
        gallery, query = self.gallery.numpy(), self.query.numpy()
        return evaluate_features(gallery, self.labels, query, self.query_labels, K).mean_average_precision

    def report(self, codes: Codes) -> EvaluationReport:
        return evaluate(codes.encode(self.gallery), self.labels, codes.tables(self.query), self.query_labels, K)


@lru_cache(maxsize=6)
def _load(root: Path, paths: tuple[str, ...], resize: int) -> FaceDataset:
    """Decode images; the next jobs of the same data take them from memory. Labels are hashes of people's names."""
    labels = [int.from_bytes(hashlib.sha256(person_of(path).encode()).digest()[:7], "big") for path in paths]
    dataset = FaceDataset(root, paths, labels, resize)
    dataset.preload()
    return dataset


def _ways(model: OPQN, job: Job) -> list[Codes]:
    """Return every way to codes that comes of a training: the model's own, or PQ, OPQ, ITQ and LSH of its features."""
    if job.entry != COSFACE:
        num_bits = model.config.num_bits
        return [
            Codes(
                job.entry,
                num_bits,
                model.num_books,
                model.num_words,
                isinstance(model.quantizer, HashHead | CosFaceHead),
                model.encode_features,
                model.tables_of_features,
            )
        ]
    features = dataset_features(model, _load(job.root, job.train.train, model.config.resize))[0].numpy()
    ways = []
    for shape in job.shapes:
        for name, quantizer in _compressors(shape, features.shape[1], job.seed).items():
            quantizer.fit(features)
            ways.append(
                Codes(
                    f"{COSFACE} + {name}",
                    shape.num_bits,
                    quantizer.num_books,
                    quantizer.num_words,
                    isinstance(quantizer, BinaryQuantizer),
                    lambda x, quantizer=quantizer: quantizer.encode(x.numpy()),
                    lambda x, quantizer=quantizer: quantizer.lookup_tables(x.numpy()),
                )
            )
    return ways


def _compressors(shape: Shape, dim: int, seed: int) -> Mapping[str, ProductQuantizer | BinaryQuantizer]:
    found: dict[str, ProductQuantizer | BinaryQuantizer] = {}
    if dim % shape.num_books == 0:
        found["PQ"] = ProductQuantizer(*shape, seed=seed)
    found["OPQ"] = ProductQuantizer(*shape, rotation=True, seed=seed)
    found["ITQ"] = BinaryQuantizer(shape.num_bits, "itq", seed=seed)
    found["LSH"] = BinaryQuantizer(shape.num_bits, "lsh", seed=seed)
    return found


def _row(codes: Codes, model: OPQN, tested: list[_Tested]) -> dict[str, Any]:
    stored = codes.encode(tested[0].gallery)
    protocols = {}
    for part in tested:
        report = part.report(codes).to_dict()
        del report["codeword_use"], report["codeword_entropy"]
        protocols[part.test.protocol] = report
    return {
        "name": codes.name,
        "bits": codes.num_bits,
        "bytes": -(-codes.num_bits // PACKED),
        "shape": [codes.num_books, codes.num_words],
        "is_binary": codes.is_binary,
        "encode_ms": _encode_ms(codes, model, tested[0].images),
        "search_us": _search_us(codes, stored, tested[0].query),
        "protocols": protocols,
    }


def _encode_ms(codes: Codes, model: OPQN, dataset: FaceDataset) -> float:
    """Time from decoded image to code by one thread, in ms an image; the median of a few repeats."""
    images = dataset.__getitems__(range(min(TIMED_IMAGES, len(dataset)))).images.numpy()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return 1e3 * _median_seconds(lambda: codes.encode(model.features(images))) / len(images)
    finally:
        torch.set_num_threads(threads)


def _search_us(codes: Codes, stored: NDArray[np.uint8], queries: Tensor) -> float:
    """Time an exact search of ten by one thread, tables made before, in us a query."""
    index = CodeIndex(codes.num_books, codes.num_words)
    index.add(stored)
    tables = codes.tables(queries[:TIMED_QUERIES])
    index.search(tables, 10, threads=1)
    return 1e6 * _median_seconds(lambda: index.search(tables, 10, threads=1)) / len(tables)


def _median_seconds(work: Any) -> float:
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))
