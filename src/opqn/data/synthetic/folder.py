"""The folder of a synthetic data set: whose it is, which people are complete, and making one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from opqn._files import atomic_folder, atomic_write_bytes, explain_os_errors, write_synced
from opqn.data.synthetic.anatomy import Anatomy
from opqn.data.synthetic.camera import encode
from opqn.data.synthetic.people import draw_person
from opqn.data.synthetic.render import render
from opqn.data.synthetic.scenes import draw_scene
from opqn.data.synthetic.settings import SyntheticSettings
from opqn.errors import ConfigError, DataError

FORMAT: Final = "opqn-synthetic"
FORMAT_VERSION: Final = 1
"""Changes when the same seed and settings come to give other pictures."""
_TRUTH: Final = ".truth.json"


@dataclass(frozen=True)
class Plan:
    """What to make, but for the number of people.

    Attributes:
        root: the folder of people.
        images: of each.
        seed: of everything.
        size: of a picture in pixels.
        settings: how much pictures differ.
    """

    root: Path
    images: int
    seed: int
    size: int
    settings: SyntheticSettings

    def folder(self, number: int) -> Path:
        """Return the folder of a person, counted from 1."""
        return self.root / f"person-{number:05d}"


def claim(out: Path, plan: Plan) -> None:
    """Refuse a folder that something else was made in, and clear away what a kill has left.

    Raises:
        ConfigError: other people are there.
        DataError: other images are there.
        OpqnError: the folder cannot be written.
    """
    made_with = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "seed": plan.seed,
        "images": plan.images,
        "size": plan.size,
        "settings": plan.settings.model_dump(mode="json"),
    }
    path = out / "synthetic.json"
    if path.exists():
        try:
            before = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            before = None
        if before != made_with:
            other = [key for key in made_with if not isinstance(before, dict) or before.get(key) != made_with[key]]
            raise ConfigError(
                f"{out} holds faces made with another {' and '.join(other)} (see {path}); choose another folder"
            )
    elif plan.root.is_dir() and any(plan.root.iterdir()):
        raise DataError(f"{plan.root} holds other images; choose an empty folder")
    else:
        atomic_write_bytes(path, (json.dumps(made_with, indent=1) + "\n").encode())
    for left in plan.root.glob(".person-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def truth_of(plan: Plan, number: int) -> bytes | None:
    """Return the truth of a person who is there, complete, as a line of JSON; else None."""
    folder = plan.folder(number)
    try:
        line = (folder / _TRUTH).read_bytes()
        names = [picture["file"] for picture in json.loads(line)["pictures"]]
        is_whole = names == [_name(plan, number, image) for image in range(1, plan.images + 1)]
        is_whole &= all((plan.root / name).stat().st_size > 0 for name in names)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return line if is_whole and line.endswith(b"\n") and line.count(b"\n") == 1 else None


def _name(plan: Plan, number: int, image: int) -> str:
    return f"{plan.folder(number).name}/{image:05d}.jpg"


class StoppedError(Exception):
    """Nobody waits for more pictures."""


def make_person(plan: Plan, number: int, anatomy: Anatomy, is_stopped: Callable[[], bool]) -> None:
    """Draw a person's pictures; the folder appears when it is complete.

    Raises:
        StoppedError: ``is_stopped`` said so before a picture.
        OpqnError: the disk is full or the folder cannot be written.
    """
    person = draw_person(np.random.default_rng([plan.seed, number]), anatomy, plan.settings.identity)
    pictures = []
    folder = plan.folder(number)
    with explain_os_errors(folder):
        if folder.is_dir():
            shutil.rmtree(folder)  # incomplete, or damaged
    with atomic_folder(folder) as aside:
        for image in range(1, plan.images + 1):
            if is_stopped():
                raise StoppedError
            scene = draw_scene((plan.seed, number, image), person, plan.settings)
            picture = render(person, scene, anatomy, plan.size)
            name = _name(plan, number, image)
            write_synced(aside / Path(name).name, encode(picture.pixels, scene.quality))
            landmarks = np.round(picture.landmarks, 3).tolist()
            pictures.append({"file": name, "landmarks": landmarks, **scene.model_dump(mode="json")})
        truth = {"person": folder.name, **person.model_dump(mode="json"), "pictures": pictures}
        write_synced(aside / _TRUTH, json.dumps(truth).encode() + b"\n")
