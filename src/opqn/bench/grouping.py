"""Benchmark of grouping: unnamed faces of people never seen, put into groups, against who they are.

A quantizer and the threshold come from one half of the people; the faces of the other half are grouped by their codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from opqn.bench.vectors import Vectors, halves
from opqn.errors import DataError
from opqn.grouping import bcubed, group_faces, knn_graph, pairwise_scores
from opqn.index import CodeIndex
from opqn.open_set import calibrate, leave_one_person_out

if TYPE_CHECKING:
    from opqn.data.vectors import VectorSet
    from opqn.estimator import OPQNQuantizer

FPIR = 0.05
"""Of the threshold, as in a gallery."""


def run(
    vectors: VectorSet,
    *,
    bits: Sequence[int] = (24, 48, 64),
    seed: int = 0,
    on_stage: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Group the faces of half of the people.

    Args:
        vectors: with people.
        bits: lengths of codes.
        seed: of the halves and the quantizer.
        on_stage: told what is being done.

    Returns:
        A JSON-ready document; see :func:`table`.

    Raises:
        DataError: no people, or too few for the threshold.
    """
    from opqn.estimator import OPQNQuantizer  # noqa: PLC0415 (scikit-learn takes a second to load)

    if vectors.people is None:
        raise DataError("the vectors have no people, and groups are compared with them; save `people` with them")
    people = np.unique(vectors.people, return_inverse=True)[1]
    first, second = halves(Vectors(vectors.vectors, people), seed)
    rows = []
    for length in bits:
        on_stage(f"{length} bits")
        quantizer = OPQNQuantizer(num_bits=length, random_state=seed).fit(first.vectors, first.people)
        threshold = _threshold(quantizer, first)
        start = time.perf_counter()
        index = CodeIndex(quantizer.num_books, quantizer.num_words)
        ids = index.add(quantizer.encode(second.vectors))
        groups = group_faces(*knn_graph(index, quantizer.lookup_tables(second.vectors), ids), threshold)
        rows.append(
            {
                "bits": length,
                "seconds": time.perf_counter() - start,
                "groups": int(groups.max()) + 1,
                "alone": int((groups < 0).sum()),
                "pairwise": pairwise_scores(groups, second.people).to_dict(),
                "bcubed": bcubed(groups, second.people).to_dict(),
            }
        )
    sizes = np.unique(second.people, return_counts=True)[1]
    return {
        "seed": seed,
        "num_faces": len(second.people),
        "num_people": len(sizes),
        "num_single": int((sizes == 1).sum()),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Lay out what :func:`run` returned as Markdown."""
    lines = [
        "| bits | groups | faces alone | pairs: precision | recall | F | B-cubed: precision | recall | F | s |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        figures = [
            f"{row[kind][name]:.3f}" for kind in ("pairwise", "bcubed") for name in ("precision", "recall", "f_score")
        ]
        lines.append(
            f"| {row['bits']} | {row['groups']:,} | {row['alone']:,} | {' | '.join(figures)} | {row['seconds']:.1f} |"
        )
    measured = (
        f"{result['num_faces']:,} faces of {result['num_people']:,} people, {result['num_single']:,} of them with one "
        f"face; quantizer and threshold (FPIR {FPIR:.0%}) from other people; a face alone is a group of its own; seed "
        f"{result['seed']}."
    )
    return "\n".join([*lines, "", measured])


def _threshold(quantizer: OPQNQuantizer, known: Vectors) -> float:
    index = CodeIndex(quantizer.num_books, quantizer.num_words)
    ids = index.add(quantizer.encode(known.vectors))
    best = leave_one_person_out(index.search, quantizer.lookup_tables(known.vectors), known.people, ids, known.people)
    num_people = len(np.unique(known.people))
    return calibrate(best, known.people, FPIR, gallery_people=num_people - 1, mutual=True).threshold
