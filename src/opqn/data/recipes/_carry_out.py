"""Carrying out a plan: images, splits, SOURCE.md. What is there already, whole, is not written again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from opqn._files import atomic_write_bytes, explain_os_errors
from opqn.data.folders import list_images
from opqn.data.images import SkippedImage, UnreadableImageError, load_image
from opqn.data.recipes.recipe import Duplicate, Plan, Prepared, Recipe, Request
from opqn.data.splits import Split, person_of
from opqn.errors import DataError, OpqnError

_LOCK: Final = ".opqn-prepare.lock"
_PARTIAL: Final = ".partial"


def carry_out(recipe: Recipe, plan: Plan, request: Request) -> Prepared:
    """Write what is planned.

    The images come first, the splits after them and SOURCE.md last: where that is, the set is whole. A call after a
    kill reads the source again and writes what is missing.

    Raises:
        DataError: the counts are wrong, no image can be read, another process is at it, or ``out`` holds other images.
        OpqnError: the disk is full or cannot be written.
    """
    num_people = len({person_of(target) for target in plan.targets})
    found = plan.found or (num_people, len(plan.targets))
    warnings = recipe.check_counts(*found, allow_incomplete=request.allow_incomplete)
    root = request.out / "images"
    lock = FileLock(request.out / _LOCK, timeout=0)
    with explain_os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise DataError(
                f"another process is preparing {request.out}; wait for it, or choose another folder"
            ) from None
    try:
        _check_room(root, plan)
        hashes, unreadable = _write_images(root, plan, request)
        kept, duplicates = _without_copies(plan.targets, hashes)
        if not kept:
            raise DataError(f"none of the {len(plan.targets)} images can be read, such as {unreadable[0]}")
        made = plan.draw(kept)
        for name, split in made.items():
            split.save(_split_path(request.out, name))
        for name, data in plan.files.items():
            atomic_write_bytes(request.out / name, data)
        prepared = Prepared(
            name=recipe.name,
            root=root,
            splits={name: _split_path(request.out, name) for name in made},
            num_people=num_people,
            num_images=len(hashes),
            skipped=(*plan.skipped, *unreadable),
            duplicates=duplicates,
            warnings=warnings,
        )
        text = source_text(recipe, prepared, made, plan.notes, request.seed)
        atomic_write_bytes(request.out / "SOURCE.md", text.encode())
        return prepared
    finally:
        lock.release()


def source_text(
    recipe: Recipe, prepared: Prepared, splits: Mapping[str, Split], notes: Sequence[str], seed: int
) -> str:
    """Write SOURCE.md: where the set comes from, its terms, what was done and what was left out."""
    lines = [f"# {recipe.title}", "", f"From: {recipe.url}", "", f"Terms: {recipe.terms}", ""]
    lines += [f"Protocol: {recipe.protocol}", ""]
    for warning in prepared.warnings:
        lines += [f"INCOMPLETE, so figures do not compare with published ones. {warning}.", ""]
    lines += [f"Written: {prepared.num_images:,} images of {prepared.num_people:,} {recipe.kind}; seed {seed}.", ""]
    lines += ["| split | train | gallery | query | hash |", "|---|---|---|---|---|"]
    for name, split in splits.items():
        sizes = " | ".join(f"{len(paths):,}" for paths in (split.train, split.gallery, split.query))
        lines.append(f"| {name} | {sizes} | {split.hash} |")
    lines.append("")
    lines += [f"- {note}" for note in notes] + [""] * bool(notes)
    lines += [f"## Copies: {len(prepared.duplicates):,}", ""]
    lines += ["Images whose bytes are those of another; they are in no split.", ""] * bool(prepared.duplicates)
    lines += [f"- {copy.path!r} is {copy.same_as!r}" for copy in prepared.duplicates] + [""]
    lines += [f"## Left out: {len(prepared.skipped):,}", ""]
    lines += [f"- {image.path!r}: {image.reason}" for image in prepared.skipped]
    return "\n".join(lines).rstrip() + "\n"


def _split_path(out: Path, name: str) -> Path:
    return out / "splits" / f"{name}.json"


def _check_room(root: Path, plan: Plan) -> None:
    there, _ = list_images(root)
    strange = sorted(set(there).difference(plan.targets))
    if strange:
        raise DataError(
            f"{root} holds {len(strange)} images that do not belong to this set or seed, such as {strange[0]}; choose "
            "an empty folder"
        )
    with explain_os_errors(root):
        have = sum((root / path).stat().st_size for path in there)
        free = shutil.disk_usage(root).free
    if plan.num_bytes - have > free:
        raise OpqnError(
            f"the images need {(plan.num_bytes - have) / 1e9:.1f} GB more and {free / 1e9:.1f} GB are free at {root}; "
            "make room or choose another place"
        )


def _write_images(root: Path, plan: Plan, request: Request) -> tuple[dict[str, bytes], list[SkippedImage]]:
    """Return the SHA-256 of each image that stands there now, and what cannot be read."""
    hashes: dict[str, bytes] = {}
    unreadable: list[SkippedImage] = []
    total = len(plan.targets)
    for done, (target, data) in enumerate(plan.read(), start=1):
        path = root / target
        if not _is_there(path, data):
            try:
                load_image(data, min_side=1)  # the smallest that shows whether a file is whole
            except UnreadableImageError as error:
                unreadable.append(SkippedImage(target, error.reason))
                request.on_progress(done, total)
                continue
            _write(root / _PARTIAL, path, data)
        hashes[target] = hashlib.sha256(data).digest()
        request.on_progress(done, total)
    if hasattr(os, "sync"):  # once, for all: a sync a file would take hours; the splits must not outlive the images
        os.sync()
    return hashes, sorted(unreadable)


def _is_there(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _write(partial: Path, path: Path, data: bytes) -> None:
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _without_copies(
    targets: Sequence[str], hashes: Mapping[str, bytes]
) -> tuple[tuple[str, ...], tuple[Duplicate, ...]]:
    first: dict[bytes, str] = {}
    kept: list[str] = []
    copies: list[Duplicate] = []
    for target in targets:
        digest = hashes.get(target)
        if digest is None:
            continue
        if digest in first:
            copies.append(Duplicate(target, first[digest]))
        else:
            first[digest] = target
            kept.append(target)
    return tuple(kept), tuple(copies)
