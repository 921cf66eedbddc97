"""Nothing heavy is imported before it is used, and a missing library is named with its remedy."""

import subprocess
import sys

import numpy as np
import pytest

import opqn.faces
from opqn.errors import OpqnError
from opqn.faces import FaceDetector, FaceEmbedder, align


def test_importing_loads_no_network_library():
    code = (
        "import sys, opqn.faces; "
        "print(sorted({'cv2', 'onnx', 'onnxruntime', 'torch', 'huggingface_hub', 'PIL'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_using_it_loads_no_torch():
    code = (
        "import sys, numpy, opqn.faces; p = opqn.faces.FacePipeline(threads=1); "
        "list(p.process([(0, numpy.zeros((50, 50, 3), 'uint8'))])); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("missing", "use"),
    [
        ("cv2", FaceDetector),
        ("onnx", FaceDetector),
        ("onnx", FaceEmbedder),
        ("onnxruntime", FaceEmbedder),
        ("cv2", lambda: align(np.zeros((9, 9, 3), np.uint8), [[0, 0], [1, 0], [0, 1], [2, 2], [3, 3]])),
    ],
)
def test_a_missing_library_is_named_with_its_remedy(monkeypatch, missing, use):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(OpqnError, match=rf"needs {missing}, .*pip install 'opqn\[faces\]'"):
        use()


def test_every_public_name_is_there():
    assert all(hasattr(opqn.faces, name) for name in opqn.faces.__all__)
    assert len(set(opqn.faces.__all__)) == len(opqn.faces.__all__)
