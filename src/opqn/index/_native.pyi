# The compiled search core; see native/README.md.

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ITEMS: int

class Segment:
    num_bytes: int
    first_id: int
    def __len__(self) -> int: ...
    def ids(self) -> NDArray[np.int64]: ...
    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]: ...

def build(
    codes: NDArray[np.uint8],
    ids: NDArray[np.int64],
    *,
    num_words: int,
    clique: int,
    has_lists: bool,
    has_planes: bool,
    num_threads: int = 1,
) -> Segment: ...
def merge(
    segments: Sequence[Segment],
    masks: Sequence[tuple[NDArray[np.uint8], int] | None],
    *,
    clique: int,
    has_lists: bool,
    has_planes: bool,
    num_threads: int = 1,
) -> Segment: ...
def arrays_of(segment: Segment) -> dict[str, NDArray[np.uint8]]: ...
def from_arrays(
    arrays: dict[str, NDArray[np.uint8]],
    *,
    size: int,
    first_id: int,
    num_books: int,
    num_words: int,
    clique: int,
    has_lists: bool,
    has_planes: bool,
) -> Segment: ...
def search(
    segments: Sequence[Segment],
    masks: Sequence[tuple[NDArray[np.uint8], int] | None],
    tables: NDArray[np.float32],
    k: int,
    num_threads: int = 1,
    plan: str = "any",
    allowed: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
def search_within(
    segments: Sequence[Segment],
    masks: Sequence[tuple[NDArray[np.uint8], int] | None],
    tables: NDArray[np.float32],
    threshold: float,
    num_threads: int = 1,
    allowed: NDArray[np.uint8] | None = None,
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]: ...
def explain(
    segments: Sequence[Segment],
    masks: Sequence[tuple[NDArray[np.uint8], int] | None],
    tables: NDArray[np.float32],
    k: int,
    plan: str = "any",
) -> list[dict[str, Any]]: ...
def first_bad_table(tables: NDArray[np.float32]) -> tuple[int, bool] | None: ...
def available_kernels() -> list[str]: ...
def choose_kernel(name: str) -> None: ...
