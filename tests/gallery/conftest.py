import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the processes that tests start import stand_ins too

from stand_ins import Averages, write_pictures

from opqn.gallery import Gallery


@pytest.fixture
def photos(tmp_path):
    return write_pictures(tmp_path / "photos", 6)


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "faces.gallery", Averages()) as made:
        yield made


@pytest.fixture
def filled(gallery, photos):
    gallery.add_folder(photos)
    return gallery
