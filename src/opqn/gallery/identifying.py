"""From faces found to people named: candidates, thresholds, and what calibrates them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from opqn.errors import DataError
from opqn.gallery.catalog import Catalog
from opqn.gallery.records import face_infos
from opqn.gallery.results import Box, Candidate, FaceHit, Identification
from opqn.open_set import NOBODY, Calibration, calibrate, leave_one_person_out, person_scores

NUM_FACES: Final = 100
"""Hits that people are made of. A threshold holds for one number of them, so it is the same everywhere."""

Search = Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]


def identify(
    catalog: Catalog,
    search: Search,
    tables: NDArray[np.float32],
    boxes: Sequence[Box | None],
    threshold: float | None,
    num_candidates: int,
) -> list[Identification]:
    """Name whom each of (Q, M, K) tables shows."""
    scores, ids = search(tables, k=NUM_FACES)
    with catalog.snapshot():  # so that a face found shows the person it is counted for
        people = _people_of(catalog, ids)
        ranked = person_scores(scores, people)
        best = [
            [
                (float(score), int(np.flatnonzero(people[row] == person)[0]))
                for person, score in zip(ranked.people[row], ranked.scores[row], strict=True)
                if person != NOBODY
            ][:num_candidates]
            for row in range(len(tables))
        ]  # for each query scores of people, and the place of their best face among the hits
        infos = face_infos(
            catalog, sorted({int(ids[row, place]) for row, ones in enumerate(best) for _, place in ones})
        )
    results = []
    for row, ones in enumerate(best):
        candidates = []
        for score, place in ones:
            face = infos[int(ids[row, place])]
            if face.person is not None:
                candidates.append(Candidate(face.person, score, FaceHit(float(scores[row, place]), face)))
        top = candidates[0] if candidates else None
        is_named = top is not None and (threshold is None or top.score >= threshold)
        results.append(
            Identification(
                boxes[row],
                top.person if top is not None and is_named else None,
                top.score if top is not None else None,
                threshold,
                tuple(candidates),
            )
        )
    return results


def own_calibration(
    catalog: Catalog,
    search: Search,
    tables_of: Callable[[Sequence[int]], NDArray[np.float32]],
    fpir: float,
    for_people: int | None,
) -> Calibration:
    """Calibrate by the gallery's own people, each searched in the gallery as if it had nothing of them."""
    rows = catalog.rows("SELECT id, person FROM faces WHERE person IS NOT NULL ORDER BY id")
    num_people = len({person for _, person in rows})
    if num_people < 2:
        raise DataError(
            f"{num_people} people have names or groups, and calibrating takes hundreds; name people, group faces, or "
            "give photographs of strangers"
        )
    ids, people = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    tables = tables_of(ids.tolist())
    best = leave_one_person_out(search, tables, people, ids, people, NUM_FACES)
    return calibrate(best, people, fpir, gallery_people=num_people - 1, for_people=for_people, mutual=True)


def stranger_calibration(
    catalog: Catalog,
    search: Search,
    tables: NDArray[np.float32],
    strangers: NDArray[np.str_],
    fpir: float,
    for_people: int | None,
) -> Calibration:
    """Calibrate by the (S, M, K) tables of people who are not in the gallery."""
    num_people = catalog.count("people")
    if not num_people:
        raise DataError("nobody in the gallery has a name or a group yet, so there is nothing to calibrate")
    scores, ids = search(tables, k=NUM_FACES)
    best = person_scores(scores, _people_of(catalog, ids)).best
    return calibrate(best, strangers, fpir, gallery_people=num_people, for_people=for_people)


def _people_of(catalog: Catalog, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(Q, k) people of (Q, k) faces; -1 for a face of nobody and for padding."""
    faces = np.unique(ids[ids >= 0])
    rows: list[tuple[Any, ...]] = catalog.rows_in("SELECT id, person FROM faces WHERE id IN", faces.tolist())
    of = {face: person for face, person in rows if person is not None}
    numbers = np.array([of.get(face, NOBODY) for face in faces.tolist()] + [NOBODY], dtype=np.int64)
    places = np.searchsorted(faces, ids)
    return np.where(ids >= 0, numbers[np.minimum(places, len(faces))], NOBODY)
