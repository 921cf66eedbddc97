"""Photos made of real faces: ORL faces pasted on canvases, and aligned LFW crops where they are at hand."""

import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from opqn.data.images import load_image
from opqn.data.orl import _read, find_orl
from opqn.faces import FaceDetector, FaceEmbedder, FacePipeline

SHARED = Path(os.environ.get("OPQN_SHARED") or Path(__file__).parents[2].parent / "shared")


@pytest.fixture(scope="session")
def orl():
    """Return a function: the picture of a person, (112, 92, 3) uint8."""
    folder = find_orl()
    return lambda person, picture=1: np.asarray(load_image(_read(folder / f"s{person}" / f"{picture}.pgm")))


@pytest.fixture(scope="session")
def collage(orl):
    """Return a function: a photo of faces side by side on a textured wall, and the centre (x, y) of each."""

    def paste(people, columns=1, scale=1.0, gap=40):
        faces = [cv2.resize(orl(person), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR) for person in people]
        high, wide = faces[0].shape[:2]
        rows = -(-len(faces) // columns)
        wall = np.random.default_rng(0).normal(110, 40, (rows * (high + gap) + gap, columns * (wide + gap) + gap, 3))
        photo = cv2.GaussianBlur(wall.clip(0, 255).astype(np.uint8), (0, 0), 4)
        centres = []
        for place, face in enumerate(faces):
            top, left = gap + place // columns * (high + gap), gap + place % columns * (wide + gap)
            photo[top : top + high, left : left + wide] = face
            centres.append((left + wide / 2, top + high / 2))
        return photo, np.array(centres)

    return paste


@pytest.fixture(scope="session")
def lfw():
    """Aligned LFW crops, (112, 112, 3) uint8, by name, and the vectors that SFace gave elsewhere for them."""
    images, vectors = SHARED / "data" / "lfw_aligned112.tar", SHARED / "data" / "lfw_sface.npz"
    if not (images.is_file() and vectors.is_file()):
        pytest.skip(f"no {images} or {vectors}: set OPQN_SHARED to the folder that holds data/")
    with np.load(vectors, allow_pickle=False) as file:
        known = dict(zip(file["n"].tolist(), file["e"], strict=True))
    pairs = []
    with tarfile.open(images) as tar:
        for member in tar:
            if member.isfile() and len(pairs) < 12:
                name = "/".join(Path(member.name).parts[-2:])
                pairs.append((np.asarray(Image.open(tar.extractfile(member)).convert("RGB")), known[name]))
            if len(pairs) == 12:
                break
    return np.stack([image for image, _ in pairs]), np.stack([vector for _, vector in pairs])


@pytest.fixture(scope="session")
def detector():
    return FaceDetector()


@pytest.fixture(scope="session")
def embedder():
    return FaceEmbedder()


@pytest.fixture(scope="session")
def pipeline(detector, embedder):
    return FacePipeline(detector, embedder, threads=2)
