"""Benchmark of search: :class:`opqn.CodeIndex` and each of its plans against FAISS's full scan, in one process.

FAISS gets the same codes, and centroids that are unit vectors, so that its query vector is the table: what its users
do to search with preset centroids. Every answer of ours that is timed is compared with a sort of everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from opqn.baselines.product_quantization import import_faiss
from opqn.errors import ConfigError, OpqnError
from opqn.index import CodeIndex, _native, score
from opqn.index.segments import Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["peaked", "flat"]
PLANS: Final = ("any", "cells", "cover", "lists", "bounds", "scan")
AGREEMENT: Final = 0.9
"""Probability that an image's word in a book, or a query's best word, is the person's."""
PEAK: Final = 0.85
"""About what a query's table puts on the best word of a book; the other words share the rest at random."""
FACE_ROWS: Final = 65_536
CHECK_ROWS: Final = 65_536
MIN_SECONDS: Final = 0.2
"""A side is run again until it has taken this long; its best time counts."""
LIFE_QUERIES: Final = 2000
LIFE_ROUNDS: Final = 5
LIFE_ADDS: Final = 20_000

Hits: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.int64]]"


class Inputs(NamedTuple):
    """Codes to search and tables to search with."""

    codes: NDArray[np.uint8]
    """(N, M)."""
    tables: NDArray[np.float32]
    """(Q, M, K)."""
    origin: str
    """What they were made of, for people."""


def made_up(
    num_items: int,
    num_queries: int,
    num_books: int,
    num_words: int,
    kind: Kind,
    *,
    images_a_person: int = 50,
    seed: int = 0,
) -> Inputs:
    """Draw people of so many images each, and tables that are peaked as those of a good model, or flat."""
    rng = np.random.default_rng(seed)
    num_people = -(-num_items // images_a_person)
    people = rng.integers(num_words, size=(num_people, num_books), dtype=np.uint8)
    codes = np.repeat(people, images_a_person, axis=0)[:num_items]
    for first in range(0, num_items, 1 << 20):
        piece = codes[first : first + (1 << 20)]
        stray = rng.random(piece.shape, dtype=np.float32) > AGREEMENT
        piece[stray] = rng.integers(num_words, size=int(stray.sum()), dtype=np.uint8)
    tables = rng.random((num_queries, num_books, num_words), dtype=np.float32)
    if kind == "peaked":
        best = people[rng.integers(num_people, size=num_queries)]
        stray = rng.random(best.shape) > AGREEMENT
        best[stray] = rng.integers(num_words, size=int(stray.sum()), dtype=np.uint8)
        place = best.astype(np.intp)[:, :, None]  # (Q, M, 1)
        tables = -np.log1p(-tables)
        tables *= (1 - PEAK) / tables.sum(axis=2, keepdims=True)
        np.put_along_axis(tables, place, rng.uniform(0.9 * PEAK, 1.1 * PEAK, place.shape).astype(np.float32), axis=2)
    return Inputs(codes, tables, f"{num_people:,} made-up people of {images_a_person} images, {kind} tables")


def of_model(
    model: str, data: Path, num_items: int, num_queries: int, query_temperature: float | None = None, seed: int = 0
) -> Inputs:
    """Encode noise around real faces' features, as far from them as a person's images are from each other.

    Args:
        model: folder, of OPQN or a comparison method, or hub id.
        data: folder of a folder a person.
        num_items: N.
        num_queries: Q; the queries are the faces themselves, without noise.
        query_temperature: instead of the model's.
        seed: of the noise and of the choice of faces.

    Raises:
        ConfigError: ``query_temperature`` is not a positive finite number, or the model's method has none.
        DataError: there is no such model, or no image can be read.
        CorruptFileError: the model's folder is incomplete, changed, of another format or of a newer one.
    """
    import torch  # noqa: PLC0415 (searching needs none of it)

    from opqn.baselines.model import BaselineModel, load_model  # noqa: PLC0415
    from opqn.data.folders import scan_folder  # noqa: PLC0415
    from opqn.protocols import image_features  # noqa: PLC0415

    network = load_model(model)
    if isinstance(network, BaselineModel):
        if query_temperature is not None:
            raise ConfigError(f"the method {network.method.name} has no query temperature; leave it out")
        kind = f"encoded by {network.method.name}"
    else:
        if query_temperature is not None:
            network.with_query_temperature(query_temperature)
        kind = f"query temperature {network.config.query_temperature:g}"
    faces = image_features(network, data, tuple(scan_folder(data).paths))
    features, people = faces.features, faces.people()
    _, number, count = np.unique(people, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(count), features.shape[1]).index_add_(0, torch.from_numpy(number), features)
    means = sums / torch.from_numpy(count)[:, None]
    spread = (features - means[torch.from_numpy(number)]).std(dim=0)
    generator = torch.Generator().manual_seed(seed)
    codes = np.empty((num_items, network.num_books), dtype=np.uint8)
    for first in range(0, num_items, FACE_ROWS):
        rows = min(FACE_ROWS, num_items - first)
        chosen = features[torch.randint(len(features), (rows,), generator=generator)]
        noise = spread * torch.randn(chosen.shape, generator=generator)
        codes[first : first + rows] = network.encode_features(chosen + noise)
    queries = features[torch.randint(len(features), (num_queries,), generator=generator)]
    origin = f"noise around {len(features):,} faces of {len(means):,} people, {kind}"
    return Inputs(codes, network.tables_of_features(queries), origin)


def run(
    inputs: Inputs,
    ks: Sequence[int] = (10, 100),
    profile: Profile = "fast",
    *,
    plans: Sequence[str] = PLANS,
    check: int = 20,
    faiss_queries: int = 5,
    slow_queries: int = 5,
    threads: int = 1,
    has_life: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Build both indexes, check our answers, and time all of it.

    Args:
        inputs: see :func:`made_up` and :func:`of_model`.
        ks: numbers of hits.
        profile: of our index.
        plans: which to time; "any" is what a user gets. A plan that cannot prove its answer runs the next one.
        check: queries whose answers are compared with a sort of everything, with every plan.
        faiss_queries: queries that FAISS is timed on; each costs it the same.
        slow_queries: the same for our scan and bounds.
        threads: of both sides.
        has_life: whether saving, opening, adding and a second thread are measured too; the index goes into a
            temporary folder.
        on_stage: told what begins.

    Returns:
        A JSON-ready document.

    Raises:
        OpqnError: an answer is wrong, or FAISS is not installed.
        ConfigError: no queries, or an unknown plan.
    """
    codes, tables, origin = inputs
    if not len(tables) or not len(codes):
        raise ConfigError("there is nothing to search, or nothing to search for; ask for more items and queries")
    if unknown := set(plans) - set(PLANS):
        raise ConfigError(f"unknown plan {min(unknown)!r}; plans: {', '.join(PLANS)}")
    num_books, num_words = tables.shape[1:]
    on_stage(f"building an index of {len(codes):,} codes")
    index = CodeIndex(num_books, num_words, profile)
    began = time.perf_counter()
    index.add(codes)
    build_seconds = time.perf_counter() - began
    on_stage("building FAISS's index")
    searches = _faiss_searches(codes, tables[:faiss_queries], threads)
    on_stage("sorting everything, to check")
    wanted = sort_everything(codes, tables[:check], max(ks))
    rows = []
    for k in ks:
        on_stage(f"timing k = {k}")
        theirs = np.inf
        for name, search in searches.items():
            seconds = _best_seconds(search, k) / min(faiss_queries, len(tables))
            theirs = min(theirs, seconds)
            rows.append({"k": k, "method": name, "milliseconds": 1000 * seconds})
        for plan in plans:
            some = tables[:slow_queries] if plan in ("bounds", "scan") else tables
            _check(index, tables[:check], k, plan, wanted)
            ours = _best_seconds(partial(_search, index, some, plan, threads), k) / len(some)
            rows.append({"k": k, "method": f"opqn, {plan}", "milliseconds": 1000 * ours, "ratio": theirs / ours})
    life = None
    if has_life:
        on_stage("saving, opening and adding")
        life = _measure_life(index, tables, max(ks))
    return {
        "origin": origin,
        "num_items": len(codes),
        "num_queries": len(tables),
        "num_books": num_books,
        "num_words": num_words,
        "profile": profile,
        "threads": threads,
        "kernel": _native.available_kernels()[0],
        "checked_queries": len(wanted[0]),
        "bytes_per_item": index.num_bytes / len(codes),
        "build_seconds": build_seconds,
        "rows": rows,
        "life": life,
    }


def _measure_life(index: CodeIndex, tables: NDArray[np.float32], k: int) -> dict[str, float]:
    with TemporaryDirectory(prefix="opqn-bench-") as folder:
        began = time.perf_counter()
        index.save(folder)
        saved = time.perf_counter()
        opened = CodeIndex.load(folder)
        loaded = time.perf_counter()
        opened.search(tables[:1], k)
        searched = time.perf_counter()
        del opened
    many = np.concatenate([tables] * -(-LIFE_QUERIES // len(tables)))
    rates = dict.fromkeys((1, 2), 0.0)
    for _ in range(LIFE_ROUNDS):  # in turns, so that a slow moment of the machine slows both
        for threads in rates:
            start = time.perf_counter()
            index.search(many, k, threads)
            rates[threads] = max(rates[threads], len(many) / (time.perf_counter() - start))
    codes = np.random.default_rng(0).integers(index.num_words, size=(LIFE_ADDS, index.num_books), dtype=np.uint8)
    start = time.perf_counter()
    for code in codes:
        index.add(code[None])
    added = time.perf_counter() - start
    return {
        "save_seconds": saved - began,
        "open_seconds": loaded - saved,
        "first_search_seconds": searched - loaded,
        "add_microseconds": 1e6 * added / len(codes),
        "queries_a_second": rates[1],
        "queries_a_second_of_2_threads": rates[2],
    }


def sort_everything(codes: NDArray[np.uint8], tables: NDArray[np.float32], k: int) -> Hits:
    """Return the (Q, k) first hits by the definition, scores and positions, in little memory; k at most N."""
    found = [(np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)) for _ in tables]
    for first in range(0, len(codes), CHECK_ROWS):
        for query, row in enumerate(score(tables, codes[first : first + CHECK_ROWS])):
            best, ids = found[query]
            reach = np.flatnonzero(row >= best[-1]) if len(best) == k else np.arange(len(row))
            best, ids = np.concatenate([best, row[reach]]), np.concatenate([ids, first + reach])
            order = np.argsort(-best, kind="stable")[:k]
            found[query] = best[order], ids[order]
    return np.stack([best for best, _ in found]), np.stack([ids for _, ids in found])


def _search(index: CodeIndex, tables: NDArray[np.float32], plan: str, threads: int, k: int) -> Hits:
    return _native.search(*index.view(), tables, k, threads, plan)


def _check(index: CodeIndex, tables: NDArray[np.float32], k: int, plan: str, wanted: Hits) -> None:
    scores, ids = _search(index, tables, plan, 1, k)
    if not (np.array_equal(scores, wanted[0][:, :k]) and np.array_equal(ids, wanted[1][:, :k])):
        raise OpqnError(f"plan {plan} gave other hits than a sort of everything at k = {k}; do not time")


def _best_seconds(search: Callable[[int], object], k: int) -> float:
    best, total = np.inf, 0.0
    while total < MIN_SECONDS or best == np.inf:
        began = time.perf_counter()
        search(k)
        seconds = time.perf_counter() - began
        best, total = min(best, seconds), total + seconds
    return best


def _faiss_searches(
    codes: NDArray[np.uint8], tables: NDArray[np.float32], threads: int
) -> dict[str, Callable[[int], object]]:
    """Return FAISS's full scan, and for 4-bit words its fast scan, as functions of k."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(threads)
    num_books, num_words = tables.shape[1:]
    num_bits = 4 if num_words == 16 else 8
    # Bytes are what FAISS scans fastest, so fewer words than 256 get centroids that no code names.
    centroids = np.zeros((num_books, 1 << num_bits, num_words), dtype=np.float32)
    centroids[:, :num_words] = np.eye(num_words, dtype=np.float32)
    index = faiss.IndexPQ(num_books * num_words, num_books, num_bits, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(centroids.ravel(), index.pq.centroids)
    index.is_trained = True
    packed = codes if num_bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    index.add_sa_codes(np.ascontiguousarray(packed))
    queries = np.ascontiguousarray(tables.reshape(len(tables), -1))
    searches: dict[str, Callable[[int], object]] = {"FAISS IndexPQ": lambda k: index.search(queries, k)}
    if num_bits == 4:
        fast = faiss.IndexPQFastScan(index)
        searches["FAISS IndexPQFastScan (not exact)"] = lambda k: fast.search(queries, k)
    return searches


def table(result: dict[str, Any]) -> str:
    """Lay out what :func:`run` returned as a Markdown table with a line on what was measured."""
    rows = ["| k | search | ms a query | times as fast |", "|--:|---|--:|--:|"]
    for row in result["rows"]:
        ratio = f"{row['ratio']:,.1f}" if "ratio" in row else ""
        rows.append(f"| {row['k']} | {row['method']} | {row['milliseconds']:.4f} | {ratio} |")
    measured = (
        f"{result['num_items']:,} codes of {result['num_books']} x {result['num_words']} words, {result['origin']}; "
        f"{result['num_queries']:,} queries, {result['threads']} thread(s), {result['kernel']}; profile "
        f"{result['profile']}: {result['bytes_per_item']:.0f} bytes an item, built on all cores at "
        f"{result['num_items'] / result['build_seconds'] / 1e6:.1f} million codes a second; the answers to "
        f"{result['checked_queries']} queries equal a sort of everything, with every plan."
    )
    lines = [*rows, "", measured]
    if life := result["life"]:
        one, two = life["queries_a_second"], life["queries_a_second_of_2_threads"]
        k = max(row["k"] for row in result["rows"])
        told = (
            f"Saved in {life['save_seconds']:.1f} s, opened in {life['open_seconds']:.3f} s (mapped; the first search "
            f"then took {life['first_search_seconds']:.3f} s). {LIFE_ADDS:,} single codes added, with the merges they "
            f"cause: {life['add_microseconds']:.0f} microseconds each. Queries a second, k = {k}: {one:,.0f} with one "
            f"thread, {two:,.0f} with two, {two / one:.2f} times as many."
        )
        lines += ["", told]
    return "\n".join(lines)
