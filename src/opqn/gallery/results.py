"""What a gallery answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opqn.data.images import SkippedImage

Box = tuple[float, float, float, float]
"""x, y, width and height in pixels of the upright picture."""


@dataclass(frozen=True)
class Person:
    """Someone in a gallery."""

    id: int
    name: str | None
    """None for a group of faces that look like one person and have no name yet."""

    @property
    def label(self) -> str:
        """What to call them."""
        return self.name if self.name is not None else f"unnamed person {self.id}"


@dataclass(frozen=True)
class FaceInfo:
    """A face of a gallery."""

    id: int
    person: Person | None
    """None while nobody said who it is."""
    paths: tuple[str, ...]
    """Files that showed it when they were last looked at."""
    box: Box | None
    """Where in the picture; None for faces added without one."""
    quality: dict[str, float]
    """What is known of the signals of :class:`opqn.faces.FaceQuality`."""


@dataclass(frozen=True)
class FaceHit:
    """A face found."""

    score: float
    face: FaceInfo


@dataclass(frozen=True)
class QueryResult:
    """What was found for one face of a query picture."""

    box: Box | None
    """Where in the query picture; None where the query is a crop, a vector or a table."""
    hits: tuple[FaceHit, ...]
    """Most alike first."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """A person that a face may show."""

    person: Person
    score: float
    """Their faces' scores combined, see :func:`opqn.open_set.person_scores`."""
    best: FaceHit
    """Their face that is most alike."""


@dataclass(frozen=True)
class Identification:
    """Who a face shows."""

    box: Box | None
    person: Person | None
    """None: nobody in the gallery, as far as the threshold tells."""
    score: float | None
    """Of the best candidate; None if there is none."""
    threshold: float | None
    """Lowest score that names a person; None if the gallery has none, and then the best candidate is named."""
    candidates: tuple[Candidate, ...]
    """Best first."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class AddReport:
    """What adding did."""

    ids: tuple[int, ...]
    """Of the new faces."""
    num_photos: int = 0
    """New pictures, those without a face among them."""
    num_without_face: int = 0
    num_duplicates: int = 0
    """Pictures whose content was in the gallery already, here or under another name."""
    num_unchanged: int = 0
    """Files that were not looked at again, as neither size nor time of change differ."""
    num_filtered: int = 0
    """Faces left out for their quality."""
    num_removed_before: int = 0
    """Pictures whose faces were once removed for good; they are not added again."""
    skipped: tuple[SkippedImage, ...] = ()
    """Files that cannot be read, and why."""
    missing: tuple[str, ...] = ()
    """Files that were there and are not any more; their faces stay."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the number of faces in place of their ids."""
        facts = asdict(self)
        return {
            "faces": len(facts.pop("ids")),
            "photos": facts.pop("num_photos"),
            **{name.removeprefix("num_"): value for name, value in facts.items() if name != "skipped"},
            "skipped": [image._asdict() for image in self.skipped],
        }


@dataclass(frozen=True)
class VerifyReport:
    """What checking a gallery found."""

    num_faces: int
    problems: tuple[str, ...]
    """What is wrong, a line each; empty if all is well."""
    pending: tuple[str, ...] = ()
    """What a crash cut short and the next change, or a repair, finishes."""
    repaired: tuple[str, ...] = ()
    """What was wrong and is put right."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class GalleryInfo:
    """What a gallery holds."""

    num_faces: int
    num_people: int
    """With a name."""
    num_groups: int
    """People without a name."""
    num_unknown: int
    """Faces of nobody yet."""
    num_photos: int
    num_unreadable: int
    """Files that could not be read."""
    num_bits: int
    fingerprint: str
    """Of the encoder."""
    catalog_bytes: int
    index_bytes: int
    sources: tuple[str, ...]
    """Folders that pictures came from."""
    calibration: dict[str, Any] | None
    """The threshold, and what is known of it."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
