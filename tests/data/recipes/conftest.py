import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the files of tests share small_sets

from small_sets import people, write_files


@pytest.fixture
def lfw(tmp_path):
    """Ten people with 1 to 10 images, as the archive unpacks."""
    names = [f"Person_{chr(65 + i)}" for i in range(10)]
    return write_files(tmp_path / "lfw", people(names, list(range(1, 11))))
