import shutil
from pathlib import Path

import pytest
from stand_ins import Averages, picture

from opqn.gallery import Gallery

FORMATS = Path(__file__).parents[1] / "formats"


@pytest.mark.parametrize("version", ["v1"])
def test_every_format_ever_written_is_read_and_written_on(version, tmp_path):
    shutil.copytree(FORMATS / version / "gallery", tmp_path / "g")
    with Gallery.open(tmp_path / "g", Averages()) as gallery:
        assert {person.name: count for person, count in gallery.people()} == {"Ann": 2, "Bob": 1, "Cid": 1}
        assert [gallery.search(picture(number), k=1)[0].hits[0].face.id for number in (0, 1, 3)] == [1, 3, 5]
        assert gallery.crop(3).size == (32, 16)
        assert gallery.verify().problems == ()
        assert gallery.add(picture(2, 0)).num_removed_before == 1
        assert gallery.add(picture(9), "Ann").ids == (6,)
        gallery.remove(person="Bob")
        assert gallery.verify().problems == ()
