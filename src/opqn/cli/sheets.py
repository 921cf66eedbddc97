"""Contact sheets of what a gallery answers."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from opqn.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    from opqn.gallery import FaceHit, Gallery, Person
    from opqn.report import Hit, SheetRow

_GROUPS: Final = 20
_GROUP_FACES: Final = 12


def answer_rows(
    gallery: Gallery, answers: Sequence[tuple[Path, Sequence[float] | None, str | None, Sequence[FaceHit]]]
) -> list[SheetRow]:
    """Return a row for each answer: a query, where the face is in it, who it is, and hits.

    A hit is right or wrong where the query's folder bears the name of a person in the gallery; that person's name also
    stands for a face of whom the answer does not say who it is.
    """
    from opqn.report import SheetRow

    known = {person.name for person, _ in gallery.people()}
    rows = []
    for query, box, who, hits in answers:
        person = query.resolve().parent.name
        truth = person if person in known else None
        rows.append(SheetRow(_cut_out(query, box), who or truth, tuple(_hit(gallery, hit, truth) for hit in hits)))
    return rows


def group_rows(gallery: Gallery, groups: Sequence[tuple[Person, Sequence[int]]]) -> list[SheetRow]:
    """Return a row for each of the largest groups, with its number and how many faces it has."""
    from opqn.report import Hit, SheetRow

    rows = []
    for person, faces in groups[:_GROUPS]:
        first, *others = [(face, gallery.crop(face)) for face in faces[:_GROUP_FACES]]
        hits = tuple(Hit(crop, f"face {face}", None, None) for face, crop in others if crop is not None)
        if first[1] is not None:
            rows.append(SheetRow(first[1], f"#{person.id}: {len(faces)}", hits))
    return rows


def _hit(gallery: Gallery, hit: FaceHit, truth: str | None) -> Hit:
    from PIL import Image

    from opqn.report import Hit

    crop = gallery.crop(hit.face.id)
    name = hit.face.person.label if hit.face.person is not None else None
    picture = crop if crop is not None else hit.face.paths[0] if hit.face.paths else Image.new("RGB", (8, 8), "white")
    return Hit(picture, name, hit.score, None if truth is None else name == truth)


def _cut_out(query: Path, box: Sequence[float] | None) -> Image.Image:
    """Return the part of a picture around a face."""
    from opqn.data.images import load_image

    image = load_image(query)
    if box is None:
        return image
    x, y, width, height = box
    half = 0.65 * max(width, height)
    left, top = x + width / 2 - half, y + height / 2 - half
    return image.crop((round(left), round(top), round(left + 2 * half), round(top + 2 * half)))


def write_sheet(path: Path, rows: Sequence[SheetRow], title: str) -> None:
    """Draw a contact sheet and write it as a PNG file, whole or not at all."""
    from opqn._files import atomic_write_bytes
    from opqn.report import contact_sheet

    if not rows:
        raise DataError("there is nothing to show, so there is no contact sheet; leave out --sheet")
    buffer = BytesIO()
    contact_sheet(rows, title=title).save(buffer, "PNG")
    atomic_write_bytes(path, buffer.getvalue())
