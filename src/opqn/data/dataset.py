"""Face images for training: decoded once into memory where they fit, else by the workers of a DataLoader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from opqn.data.images import SkippedImage, UnreadableImageError, load_image, to_array
from opqn.errors import ConfigError, DataError

CHUNK = 256  # images that a thread decodes before it reports


class Item(NamedTuple):
    """One image: (R, R, 3) uint8 pixels, its label, and which image was delivered."""

    image: Tensor
    label: int
    delivered: int


class Batch(NamedTuple):
    """Some images."""

    images: Tensor
    """(B, R, R, 3) uint8."""
    labels: Tensor
    """(B,) int64."""
    indices: Tensor
    """(B,) int64: the images delivered. It differs from the one asked for where that could not be read."""
    skipped: tuple[SkippedImage, ...]
    """Images that this batch found to be unreadable; hand them to :meth:`FaceDataset.record`."""


class FaceDataset(Dataset[Item]):
    """Images and labels of a split's role.

    Call :meth:`preload` first. Where N * R * R * 3 bytes fit into ``cache_bytes``, it decodes every image into memory,
    and a DataLoader needs no workers. Otherwise it looks for one readable image of each label, and images are decoded
    when they are asked for; an unreadable one is then replaced by the next readable one in the list.

    With a DataLoader, give it a ``batch_sampler`` and ``collate_fn=keep_batch``.

    Args:
        root: folder that the paths start from.
        paths: N relative paths.
        labels: N labels, one a path.
        resize: R, side in pixels that images are scaled to.
        cache_bytes: memory for decoded images.

    Raises:
        DataError: no paths.
        ConfigError: not as many labels as paths, or ``resize`` below 1.
    """

    def __init__(
        self,
        root: str | Path,
        paths: Sequence[str],
        labels: Sequence[int] | NDArray[np.int64],
        resize: int,
        *,
        cache_bytes: int = 1 << 30,
    ) -> None:
        if not paths:
            raise DataError("there are no images to use")
        if len(labels) != len(paths) or resize < 1:
            raise ConfigError(f"{len(paths)} paths need as many labels, not {len(labels)}, and a resize of at least 1")
        self.root = Path(root)
        self.paths = list(paths)
        """Paths in use. :meth:`preload` takes out those it found to be unreadable."""
        self.labels = np.asarray(labels, dtype=np.int64)
        """(N,) int64, the label of each path as it was given."""
        self.resize = resize
        self.fits = len(paths) * resize * resize * 3 <= cache_bytes
        """Whether the decoded images fit into memory."""
        self._pixels: NDArray[np.uint8] | None = None
        self._unreadable: dict[str, str] = {}

    @property
    def skipped(self) -> tuple[SkippedImage, ...]:
        """The images found to be unreadable so far, by path."""
        return tuple(SkippedImage(*item) for item in sorted(self._unreadable.items()))

    @property
    def classes(self) -> NDArray[np.int64]:
        """The labels that occur, sorted. After :meth:`preload` each has at least one readable image.

        ``numpy.searchsorted(dataset.classes, dataset.labels)`` numbers them without gaps.
        """
        return np.unique(self.labels)

    def __len__(self) -> int:
        """Return the number of paths in use."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        """Return one image; see :meth:`__getitems__`."""
        batch = self.__getitems__([index])
        return Item(batch.images[0], int(batch.labels[0]), int(batch.indices[0]))

    def __getitems__(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return the images at ``indices``.

        Raises:
            DataError: none of all images can be read.
        """
        used = np.array(indices, dtype=np.int64)  # (B,)
        if self._pixels is not None:
            images = self._pixels[used]
            found: tuple[SkippedImage, ...] = ()
        else:
            images = np.empty((len(used), self.resize, self.resize, 3), np.uint8)
            before = len(self._unreadable)
            for place, index in enumerate(used.tolist()):
                used[place], images[place] = self._read_from(index)
            found = tuple(SkippedImage(*item) for item in list(self._unreadable.items())[before:])
        return Batch(torch.from_numpy(images), torch.from_numpy(self.labels[used]), torch.from_numpy(used), found)

    def record(self, skipped: Iterable[SkippedImage]) -> None:
        """Take note of what a worker found to be unreadable: its copy of the data set ends with it."""
        self._unreadable.update(skipped)

    def preload(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Decode what fits into memory, and take unreadable images, and labels left without one, out of the data set.

        A second call does nothing.

        Args:
            on_progress: called now and then with how much is done and how much there is.

        Raises:
            DataError: no image can be read.
        """
        if self._pixels is not None:
            return
        failed: dict[int, str] = {}
        if self.fits:
            pixels = np.empty((len(self), self.resize, self.resize, 3), np.uint8)
            numbers = np.arange(len(self))
            groups = [numbers[start : start + CHUNK] for start in range(0, len(self), CHUNK)]
            self._in_threads(lambda group: self._read_all(group, pixels), groups, failed, on_progress)
            good = np.setdiff1d(numbers, list(failed))
            self._pixels = pixels[good] if failed else pixels
        else:
            order = np.argsort(self.labels, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(self.labels[order])) + 1)
            self._in_threads(self._read_until_one, groups, failed, on_progress)
            good = np.setdiff1d(order, list(failed))
        for index in sorted(failed):
            self._unreadable[self.paths[index]] = failed[index]
        if not good.size:
            raise self._nothing_readable()
        self.paths = [self.paths[index] for index in good.tolist()]
        self.labels = self.labels[good]

    def _in_threads(
        self,
        work: Callable[[NDArray[np.int64]], dict[int, str]],
        groups: Sequence[NDArray[np.int64]],
        failed: dict[int, str],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        done = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for group, found in zip(groups, pool.map(work, groups), strict=True):
                failed.update(found)
                done += len(group)
                if on_progress is not None:
                    on_progress(done, len(self))

    def _read_all(self, group: NDArray[np.int64], pixels: NDArray[np.uint8]) -> dict[int, str]:
        failed: dict[int, str] = {}
        for index in group.tolist():
            try:
                pixels[index] = self._read(index)
            except UnreadableImageError as error:
                failed[index] = error.reason
        return failed

    def _read_until_one(self, group: NDArray[np.int64]) -> dict[int, str]:
        failed: dict[int, str] = {}
        for index in group.tolist():
            try:
                self._read(index)
            except UnreadableImageError as error:
                failed[index] = error.reason
            else:
                break
        return failed

    def _read(self, index: int) -> NDArray[np.uint8]:
        return to_array(load_image(self.root / self.paths[index], min_side=self.resize), self.resize)

    def _read_from(self, index: int) -> tuple[int, NDArray[np.uint8]]:
        """Return the first readable image at or after ``index``, and its index."""
        for step in range(len(self)):
            place = (index + step) % len(self)
            if self.paths[place] not in self._unreadable:
                try:
                    return place, self._read(place)
                except UnreadableImageError as error:
                    self._unreadable[self.paths[place]] = error.reason
        raise self._nothing_readable()

    def _nothing_readable(self) -> DataError:
        path, reason = self.skipped[0]
        return DataError(
            f"none of the {len(self._unreadable)} images below {self.root} can be read; the first is {path}: {reason}"
        )


def keep_batch(batch: Any) -> Any:
    """Collate function for a DataLoader: :class:`FaceDataset` makes a whole :class:`Batch` itself."""
    return batch
