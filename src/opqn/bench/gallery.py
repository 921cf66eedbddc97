"""Benchmark of a gallery: a million faces from codes, one photograph in them, and a folder of photographs.

What a gallery adds is measured beside what it cannot do without: the search of a photograph beside finding and
embedding its faces, the indexing of a folder beside detector and embedder alone.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from opqn.data.folders import list_images
from opqn.data.images import load_image
from opqn.encoders import FaceEncoder
from opqn.errors import DataError
from opqn.gallery import Gallery

PHOTOS_A_PERSON: Final = 50
FACES: Final = 200
"""Photographs whose faces the made-up people resemble."""
NOISE: Final = np.float32(0.05)
"""Standard deviation of each of 128 numbers of a vector of length 1: two images of a person then have a cosine of .76;
in Labeled Faces in the Wild it is .67 on average."""
CODES_AT_ONCE: Final = 20_000
LOADED: Final = 256
"""Photographs that detector and embedder get at once, decoded."""

OnStage = Callable[[str], None]


def run(
    num_faces: int = 1_000_000,
    photos: Path | None = None,
    *,
    max_photos: int = 0,
    pairs: int = 3,
    repeats: int = 20,
    seed: int = 0,
    on_stage: OnStage = lambda _stage: None,
) -> dict[str, Any]:
    """Fill galleries and time them.

    Args:
        num_faces: codes to add, of made-up people of 50 faces each: noise around the faces in the photographs, or
            without photographs random words.
        photos: folder of photographs; one of them is the query, and all are indexed. Without it only codes are added.
        max_photos: at most so many photographs; 0 for all.
        pairs: times that a folder is indexed, and detector and embedder run alone, alternating.
        repeats: queries, additions.
        seed: of the codes.
        on_stage: told what is being done.

    Returns:
        A JSON-ready document; see :func:`table`.

    Raises:
        DataError: no photograph with a face.
    """
    encoder = FaceEncoder()
    paths: list[Path] = []
    vectors = None
    if photos is not None:
        relative, _ = list_images(photos, in_folders=False)
        paths = [photos / path for path in relative][: max_photos or None]
        on_stage("finding faces")
        vectors = _vectors(encoder, paths[:FACES])
    with tempfile.TemporaryDirectory() as scratch:
        result: dict[str, Any] = {"num_faces": num_faces, "seed": seed}
        result |= _codes(encoder, Path(scratch), num_faces, vectors, repeats, seed, on_stage)
        if photos is not None:
            with Gallery.open(Path(scratch) / "codes.gallery", encoder) as gallery:
                on_stage("searching with a photograph")
                result |= _query(gallery, encoder, paths, repeats)
            result |= _folder(encoder, Path(scratch), paths, pairs, on_stage)
    return result


def table(result: dict[str, Any]) -> str:
    """Lay out what :func:`run` returned as Markdown."""
    faces = f"{result['num_faces']:,} faces"
    rows = [
        "| what | measured |",
        "|---|--:|",
        f"| {faces} from codes and names to searchable | {result['faces_a_second']:,.0f} faces/s |",
        f"| size on disk | {result['bytes_a_face']:.0f} bytes a face |",
        f"| opened and searched for the first time | {result['open_seconds'] * 1000:.0f} ms |",
        f"| one more added | {result['add_seconds'] * 1000:.1f} ms |",
        f"| identified by its table | {result['identify_seconds'] * 1000:.2f} ms |",
        f"| a person removed for good, files rewritten | {result['remove_seconds']:.1f} s |",
    ]
    if "embed_seconds" in result:
        rows.append(
            f"| identified in a photograph: faces found and embedded, and what comes on top | "
            f"{result['embed_seconds'] * 1000:.0f} ms + {result['beyond_embedding_seconds'] * 1000:.2f} ms |"
        )
        rows.append(
            f"| {result['num_photos']:,} photographs from disk to searchable, {result['threads']} threads | "
            f"{result['photos_a_second']:.1f} photographs/s |"
        )
        rows.append(f"| detector and embedder alone, of the same | {result['alone_a_second']:.1f} photographs/s |")
        rows.append(f"| ratio, median of {result['pairs']} alternating pairs | {result['ratio']:.3f} |")
        rows.append(f"| photographs in which a face was found | {result['share_with_face']:.2%} |")
    return "\n".join(rows)


def _codes(
    encoder: FaceEncoder,
    scratch: Path,
    num_faces: int,
    vectors: NDArray[np.float32] | None,
    repeats: int,
    seed: int,
    on_stage: OnStage,
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    people = np.arange(num_faces) // PHOTOS_A_PERSON
    if vectors is None:
        words = rng.integers(encoder.num_words, size=(people[-1] + 1, encoder.num_books), dtype=np.uint8)
        strays = rng.integers(encoder.num_words, size=(num_faces, encoder.num_books), dtype=np.uint8)
        codes = np.where(rng.random(strays.shape) < 0.9, words[people], strays)
    else:
        faces = rng.integers(len(vectors), size=people[-1] + 1)  # of whom each person is a double
        codes = np.concatenate(
            [
                encoder.quantizer.encode(
                    vectors[faces[part]] + NOISE * rng.standard_normal((len(part), vectors.shape[1]), dtype=np.float32)
                )
                for part in np.array_split(people, max(1, num_faces // CODES_AT_ONCE))
            ]
        )
    names = [f"person {number}" for number in people.tolist()]
    on_stage(f"adding {num_faces:,} codes")
    folder = scratch / "codes.gallery"
    with Gallery.create(folder, encoder) as gallery:
        start = time.perf_counter()
        gallery.add_codes(codes, names)
        tables = encoder.quantizer.tables_of_codes(codes[:: max(1, num_faces // repeats)])[:repeats]
        gallery.search_tables(tables[:1], k=1)
        added = time.perf_counter() - start
        size = gallery.info()
    start = time.perf_counter()
    with Gallery.open(folder, encoder) as gallery:
        gallery.search_tables(tables[:1], k=1)
        opened = time.perf_counter() - start
        identify = [_timed(gallery.identify_tables, tables[row : row + 1], threads=1) for row in range(repeats)]
        add = [_timed(gallery.add_codes, codes[row : row + 1], names[row]) for row in range(repeats)]
        on_stage("removing a person")
        remove = _timed(gallery.remove, person=names[0])
    return {
        "faces_a_second": num_faces / added,
        "bytes_a_face": (size.catalog_bytes + size.index_bytes) / num_faces,
        "open_seconds": opened,
        "identify_seconds": statistics.median(identify),
        "add_seconds": statistics.median(add),
        "remove_seconds": remove,
    }


def _vectors(encoder: FaceEncoder, paths: Sequence[Path]) -> NDArray[np.float32]:
    """(F, D) of all faces in photographs."""
    found = [face.vector for path in paths for face in encoder.find(path)]
    if not found:
        raise DataError(f"no face was found in {len(paths)} photographs; give others")
    return np.stack([vector for vector in found if vector is not None])


def _query(gallery: Gallery, encoder: FaceEncoder, paths: Sequence[Path], repeats: int) -> dict[str, Any]:
    query = next(path for path in paths if encoder.find(path))
    embed, whole = [], []
    for _ in range(repeats):
        embed.append(_timed(encoder.find, query))
        whole.append(_timed(gallery.identify, query))
    beyond = [total - part for total, part in zip(whole, embed, strict=True)]
    return {"embed_seconds": statistics.median(embed), "beyond_embedding_seconds": statistics.median(beyond)}


def _folder(
    encoder: FaceEncoder, scratch: Path, paths: Sequence[Path], pairs: int, on_stage: OnStage
) -> dict[str, Any]:
    indexed, alone, with_face = [], [], 0
    for pair in range(pairs):
        for is_gallery in (True, False) if pair % 2 else (False, True):
            if is_gallery:
                on_stage(f"indexing {len(paths):,} photographs")
                with Gallery.create(scratch / f"photos{pair}.gallery", encoder) as gallery:
                    start = time.perf_counter()
                    report = gallery.add(paths)
                    gallery.search_tables(np.zeros((1, encoder.num_books, encoder.num_words), np.float32), k=1)
                    indexed.append(time.perf_counter() - start)
                    with_face = report.num_photos - report.num_without_face
            else:
                on_stage(f"detector and embedder alone, {len(paths):,} photographs")
                alone.append(_alone(encoder, paths))
    return {
        "num_photos": len(paths),
        "threads": encoder.pipeline.threads,
        "photos_a_second": len(paths) / statistics.median(indexed),
        "alone_a_second": len(paths) / statistics.median(alone),
        "pairs": pairs,
        "ratio": statistics.median(bare / whole for whole, bare in zip(indexed, alone, strict=True)),
        "share_with_face": with_face / len(paths),
        "cores": os.cpu_count(),
    }


def _alone(encoder: FaceEncoder, paths: Sequence[Path]) -> float:
    """Time finding and embedding, on all cores, of photographs that are decoded in memory before the clock runs."""
    seconds = 0.0
    for start in range(0, len(paths), LOADED):
        loaded = [(path, np.asarray(load_image(path))) for path in paths[start : start + LOADED]]
        begun = time.perf_counter()
        for _ in encoder.pipeline.process(loaded):
            pass
        seconds += time.perf_counter() - begun
    return seconds


def _timed(call: Callable[..., object], *arguments: Any, **settings: Any) -> float:
    start = time.perf_counter()
    call(*arguments, **settings)
    return time.perf_counter() - start
