"""Finding faces in photos, aligning them and describing them by ready-made networks, without torch.

:class:`FacePipeline` does all of it; the parts stand alone too. OpenCV, onnx and onnxruntime come with
``pip install 'opqn[faces]'`` and are imported when they are first used.
"""

from __future__ import annotations

from opqn.faces.align import CROP_SIDE, TEMPLATE, align, similarity
from opqn.faces.detect import Detections, DetectorSettings, FaceDetector
from opqn.faces.embed import EmbedderConfig, FaceEmbedder
from opqn.faces.pipeline import Face, FacePipeline
from opqn.faces.quality import FaceQuality, QualityFilter, head_pose, sharpness

__all__ = [
    "CROP_SIDE",
    "TEMPLATE",
    "Detections",
    "DetectorSettings",
    "EmbedderConfig",
    "Face",
    "FaceDetector",
    "FaceEmbedder",
    "FacePipeline",
    "FaceQuality",
    "QualityFilter",
    "align",
    "head_pose",
    "sharpness",
    "similarity",
]
