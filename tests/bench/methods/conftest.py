import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for made_up and tiny

import pytest
from tiny import link_data


@pytest.fixture(scope="module")
def data(drawn_faces, tmp_path_factory):
    """A folder of data sets with one in it, ``drawn``."""
    return link_data(tmp_path_factory.mktemp("sets") / "data", drawn_faces[0])
