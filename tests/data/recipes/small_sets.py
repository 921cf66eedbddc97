"""Downloads in miniature: folders and archives of tiny pictures, no two alike."""

import io
import tarfile
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from opqn.data.recipes import Counts, get_recipe
from opqn.data.recipes.faces import from_plan
from opqn.data.splits import Split


def picture(seed, format_="PNG"):
    """The bytes of an 8 x 8 picture; each seed has its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_)
    return file.getvalue()


def write_files(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def write_tar(path, members, mode="w:gz"):
    """Members: (name, bytes) or a TarInfo without content."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def people(names, images, pattern="{person}/{person}_{i:04d}.png", first=0):
    """Files of people with so many images each."""
    counts = [images] * len(names) if isinstance(images, int) else images
    seeds = iter(range(first, first + sum(counts)))
    return {
        pattern.format(person=person, i=i): picture(next(seeds))
        for person, count in zip(names, counts, strict=True)
        for i in range(1, count + 1)
    }


def small(name, plan=None, counts=(), **sizes):
    """A recipe that takes a miniature for the whole: other counts, or no check, and other sizes of its plan."""
    recipe = replace(get_recipe(name), counts=tuple(Counts(*count) for count in counts))
    return replace(recipe, run=from_plan(partial(plan, **sizes))) if plan else recipe


def load(prepared):
    """The splits, read back and checked against the images."""
    return {name: Split.load(path, prepared.root) for name, path in prepared.splits.items()}


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }
