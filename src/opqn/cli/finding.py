"""Verbs that ask a gallery: search, identify, calibrate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opqn.cli.options import Folder, Json, MaxYaw, MinScore, MinSharpness, MinSize, Queries, Sheet, quality_filter
from opqn.cli.sheets import answer_rows, write_sheet
from opqn.console import output, print_facts, print_json, print_table

if TYPE_CHECKING:
    from opqn.gallery import FaceHit, Identification


def search(
    gallery: Folder,
    queries: Queries,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Hits a face.")] = 10,
    min_size: MinSize = None,
    min_score: MinScore = None,
    min_sharpness: MinSharpness = None,
    max_yaw: MaxYaw = None,
    sheet: Sheet = None,
    as_json: Json = False,
) -> None:
    """Find the faces most like each face in pictures.

    On the sheet a hit is marked right or wrong where the query's folder bears the name of a person in the gallery.

    Example: opqn search faces.gallery someone.jpg --sheet hits.png
    """
    from opqn.gallery import Gallery

    quality = quality_filter(min_size, min_score, min_sharpness, max_yaw)
    with Gallery.open(gallery) as opened:
        answers = [(query, result) for query in queries for result in opened.search(query, k, quality=quality)]
        if sheet is not None:
            found = [(query, result.box, None, result.hits) for query, result in answers]
            write_sheet(sheet, answer_rows(opened, found), "Queries and their hits")
    if as_json:
        print_json([{"query": str(query), **result.to_dict()} for query, result in answers])
        return
    for query, result in answers:
        rows = [
            (str(rank), f"{hit.score:.4f}", _who(hit), str(hit.face.id), ", ".join(hit.face.paths))
            for rank, hit in enumerate(result.hits, 1)
        ]
        print_table(_title(query, result.box), ("rank", "score", "person", "face", "picture"), rows)


def identify(
    gallery: Folder,
    queries: Queries,
    sheet: Sheet = None,
    as_json: Json = False,
) -> None:
    """Tell whom each face in pictures shows, or that it is nobody in the gallery.

    Example: opqn identify faces.gallery someone.jpg
    """
    from opqn.gallery import Gallery

    with Gallery.open(gallery) as opened:
        answers = [(query, found) for query in queries for found in opened.identify(query)]
        if sheet is not None:
            best = [(query, one.box, _verdict(one), [hit.best for hit in one.candidates]) for query, one in answers]
            write_sheet(sheet, answer_rows(opened, best), "Whom the pictures show, best candidates first")
    if as_json:
        print_json([{"query": str(query), **found.to_dict()} for query, found in answers])
        return
    for query, found in answers:
        rows = [
            (one.person.label, f"{one.score:.4f}", str(one.best.face.id), ", ".join(one.best.face.paths))
            for one in found.candidates
        ]
        bound = "no threshold, so the best is named; `opqn calibrate` sets one"
        if found.threshold is not None:
            bound = f"a score from {found.threshold:.2f} on names a person"
        output.print(f"{_title(query, found.box)}: {_verdict(found)}", soft_wrap=True)
        print_table(bound, ("candidate", "score", "face", "picture"), rows)


def calibrate(
    gallery: Folder,
    fpir: Annotated[float, typer.Option(help="Share of strangers' faces that may be named as somebody.")] = 0.01,
    strangers: Annotated[
        Path | None,
        typer.Option(
            help="Photographs of people not in the gallery, a folder each.", show_default="the gallery's people"
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="People the gallery is to grow to.", show_default="as now")
    ] = None,
    as_json: Json = False,
) -> None:
    """Set the score from which on faces are named, by how often a stranger may be named as somebody.

    Without strangers the gallery's own people are searched, each as if they were not in it.

    Example: opqn calibrate faces.gallery --fpir 0.01
    """
    from opqn.gallery import Gallery

    with Gallery.open(gallery) as opened:
        print_facts(opened.calibrate(fpir, strangers=strangers, for_people=size).to_dict(), as_json)


def _verdict(found: Identification) -> str:
    return "unknown" if found.person is None else found.person.label


def _who(hit: FaceHit) -> str:
    return hit.face.person.label if hit.face.person is not None else "-"


def _title(query: Path, box: Sequence[float] | None) -> str:
    return f"{query}" if box is None else f"{query}, face at {box[0]:.0f}, {box[1]:.0f}"
