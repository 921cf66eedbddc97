"""Fixtures that several files of tests use: small folders of drawn faces."""

import errno
import os
import signal
from pathlib import Path

# Two processes of tests share two cores; threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from PIL import Image

from opqn.data.splits import Split

PEOPLE = 8
PICTURES = 8


def draw_face(person: int, picture: int, side: int = 40) -> Image.Image:
    """Draw a picture that shows who it is by colour and stripes, and differs from the person's others by noise."""
    look = np.random.default_rng(person)
    noise = np.random.default_rng([person, picture])
    down, across = np.mgrid[:side, :side] / side
    stripes = np.sin(2 * np.pi * (look.uniform(1, 4) * down + look.uniform(1, 4) * across))
    pixels = look.uniform(60, 190, 3) + 40 * stripes[:, :, None] + noise.normal(0, 12, (side, side, 3))
    return Image.fromarray((pixels + noise.normal(0, 8)).clip(0, 255).astype(np.uint8))


def write_faces(root: Path, people: int = PEOPLE, pictures: int = PICTURES) -> Split:
    """Draw a folder of people; of everyone the last picture is a query."""
    for person in range(people):
        (root / f"p{person}").mkdir(parents=True)
        for picture in range(pictures):
            draw_face(person, picture).save(root / f"p{person}/{picture}.png")
    train = tuple(f"p{person}/{picture}.png" for person in range(people) for picture in range(pictures - 1))
    return Split(
        "drawn-seen", "seen", 0, train, train, tuple(f"p{person}/{pictures - 1}.png" for person in range(people))
    )


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory):
    """A folder and a split of 8 people with 8 pictures each, not to be changed."""
    root = tmp_path_factory.mktemp("faces")
    return root, write_faces(root)


@pytest.fixture
def full_disk_after(monkeypatch):
    """Return a function: from now on the disk takes so many more files, then it is full."""
    sync = os.fsync

    def set_room(files: int) -> None:
        left = iter(range(files))

        def fills_up(descriptor: int) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", fills_up)

    return set_room
