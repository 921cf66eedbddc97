"""What a contact sheet shows, found again by looking for the colours of the pictures put on it."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from opqn.errors import ConfigError
from opqn.report.sheets import FRAME_COLORS, MAX_SIDE, QUERY_COLOR, Hit, SheetRow, contact_sheet

# No channel of these is used by the sheet itself.
QUERY_FILL = (1, 2, 250)
FILLS = [(250, 240, 3), (5, 240, 250), (250, 7, 240), (90, 9, 160)]


def picture(color, size=(32, 32)):
    return Image.new("RGB", size, color)


def box(sheet, color):
    """Left, top, right and bottom pixel of everything that has exactly this colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == color).all(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def differing(sheet, other):
    return np.argwhere((np.asarray(sheet) != np.asarray(other)).any(axis=2))


def one_row(*truths, label="Ada"):
    hits = tuple(Hit(picture(FILLS[i]), label, 0.9 - i / 10, truth) for i, truth in enumerate(truths))
    return SheetRow(picture(QUERY_FILL), label, hits)


@pytest.mark.parametrize("tile", [48, 96, 256])
def test_every_picture_is_framed_on_all_sides_in_the_colour_of_its_truth(tile):
    sheet = contact_sheet([one_row(True, False, None, np.False_)], tile=tile)
    expected = [FRAME_COLORS[name] for name in ("right", "wrong", "unknown", "wrong")]
    for fill, frame in zip([QUERY_FILL, *FILLS], [QUERY_COLOR, *expected], strict=True):
        left, top, right, bottom = box(sheet, fill)
        assert (right - left + 1, bottom - top + 1) == (tile, tile)
        # The upper left corner carries the mark, so walk the frame from the middle of each side.
        middle = ((left + right) // 2, (top + bottom) // 2)
        for point in [(left - 1, middle[1]), (right + 1, middle[1]), (middle[0], top - 1), (middle[0], bottom + 1)]:
            assert sheet.getpixel((int(point[0]), int(point[1]))) == frame


def test_the_query_stands_left_and_the_hits_follow_in_their_order():
    sheet = contact_sheet([one_row(True, False, None)])
    boxes = [box(sheet, fill) for fill in [QUERY_FILL, *FILLS[:3]]]
    assert all(before[2] < after[0] for before, after in pairwise(boxes))
    assert len({(top, bottom) for _, top, _, bottom in boxes}) == 1
    gaps = [after[0] - before[2] for before, after in pairwise(boxes)]
    assert gaps[0] > gaps[1] == gaps[2]


def test_rows_follow_each_other_downwards_and_may_differ_in_length():
    rows = [SheetRow(picture(FILLS[0]), "a", (Hit(picture(FILLS[1]), "b", 0.5, is_right=True),))]
    rows += [SheetRow(picture(FILLS[2]), None, ()), SheetRow(picture(FILLS[3]), "c", ())]
    sheet = contact_sheet(rows)
    tops = [box(sheet, FILLS[i])[1] for i in (0, 2, 3)]
    assert tops[2] - tops[1] == tops[1] - tops[0] > 96


def test_truth_is_told_by_the_shape_of_the_mark_and_not_by_colour_alone():
    marks = []
    for truth in (True, False, None):
        left, top, *_ = box(sheet := contact_sheet([one_row(truth)]), FILLS[0])
        corner = np.asarray(sheet.crop((int(left), int(top), int(left) + 12, int(top) + 12)))
        marks.append((corner.min(axis=2) > 220).tobytes())
    assert len(set(marks)) == 3


def test_the_scores_and_names_are_drawn_under_their_own_hit():
    row = one_row(True, True)
    left, _, right, bottom = box(contact_sheet([row]), FILLS[1])
    for changed in (
        Hit(row.hits[1].image, "Eve", row.hits[1].score, is_right=True),
        Hit(row.hits[1].image, "Ada", 0.123, is_right=True),
        Hit(row.hits[1].image, None, row.hits[1].score, is_right=True),
    ):
        other = contact_sheet([SheetRow(row.query, row.query_label, (row.hits[0], changed))])
        where = differing(contact_sheet([row]), other)
        assert len(where)
        assert (where[:, 0] > bottom).all()
        assert (where[:, 1] >= left - 8).all()
        assert (where[:, 1] <= right + 8).all()


def test_a_long_name_stays_under_its_own_picture():
    short, long = (contact_sheet([one_row(True, True, label=label)]) for label in ("W", "W" * 10_000))
    where = differing(short, long)
    assert short.size == long.size
    left, _, right, _ = box(short, FILLS[0])
    next_left = box(short, FILLS[1])[0]
    assert not ((where[:, 1] > right + 4) & (where[:, 1] < next_left - 4)).any()
    assert ((where[:, 1] >= left) & (where[:, 1] <= right)).any()


@pytest.mark.parametrize(
    "name", ["Zoë", "李明", "Владимир", "علي", "😀", "a\x00b", "two\nlines", "lone \ud800", "\uffff", "", " ", "<b>"]
)
def test_any_name_can_be_drawn(name):
    plain = contact_sheet([one_row(True, label="")])
    named = contact_sheet([one_row(True, label=name)], title=f"Hits for {name}")
    assert named.size == plain.size
    assert box(named, FILLS[0]) == box(plain, FILLS[0])


def test_an_accent_that_the_font_lacks_is_left_off():
    assert contact_sheet([one_row(True, label="Zoë")]) == contact_sheet([one_row(True, label="Zoe")])
    assert contact_sheet([one_row(True, label="Zoe\u0308")]) == contact_sheet([one_row(True, label="Zoe")])


def broken_files(tmp_path):
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(whole, "PNG")
    contents = {
        "empty.png": b"",
        "text.jpg": b"not a picture",
        "cut.png": whole.getvalue()[: len(whole.getvalue()) // 2],
        "flipped.png": whole.getvalue()[:60] + bytes(200) + whole.getvalue()[260:],
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return [*(tmp_path / name for name in contents), tmp_path, tmp_path / "missing.png", "zero\x00byte"]


def test_what_cannot_be_read_becomes_a_grey_tile_in_the_frame_of_its_truth(tmp_path):
    broken = broken_files(tmp_path)
    sheets = [
        contact_sheet([SheetRow(picture(QUERY_FILL), "q", (Hit(path, "x", 0.5, is_right=False),))]) for path in broken
    ]
    left, top, right, bottom = box(contact_sheet([one_row(False)]), FILLS[0])
    tile = np.asarray(sheets[0].crop((int(left), int(top), int(right) + 1, int(bottom) + 1)))[40:]
    colors, counts = np.unique(tile.reshape(-1, 3), axis=0, return_counts=True)
    most = colors[counts.argmax()]
    assert np.ptp(most) < 10
    assert 180 < most.mean() < 240
    assert len(colors) > 1
    assert sheets[0].getpixel((int(left) - 1, int(top + bottom) // 2)) == FRAME_COLORS["wrong"]
    assert all(sheet == sheets[0] for sheet in sheets)


@pytest.mark.parametrize("size", [(10_000, 5_001), (0, 0), (5, 0)])
def test_a_picture_of_too_many_or_no_pixels_is_shown_as_unreadable(size):
    odd, missing = (contact_sheet([SheetRow(source, "q", ())]) for source in (Image.new("1", size), "missing.png"))
    assert odd == missing


def test_a_file_that_promises_too_many_pixels_is_not_decoded(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (10_000, 5_001)).save(path)
    assert contact_sheet([SheetRow(path, "q", ())]) == contact_sheet([SheetRow("missing.png", "q", ())])


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (20, 60), (300, 100)])
def test_pictures_keep_their_shape(size):
    sheet = contact_sheet([SheetRow(picture(FILLS[0], size), "q", ())])
    left, top, right, bottom = box(sheet, FILLS[0])
    width, height = right - left + 1, bottom - top + 1
    assert max(width, height) == 96
    assert min(width, height) == pytest.approx(max(1, 96 * min(size) / max(size)), abs=1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_of_picture_is_shown(mode):
    sheet = contact_sheet([SheetRow(Image.new(mode, (8, 8)), "q", ())])
    assert sheet != contact_sheet([SheetRow("missing.png", "q", ())])


def test_a_large_photograph_from_a_file_looks_like_the_same_one_in_memory(tmp_path):
    ramp = np.linspace(0, 255, 2000, dtype=np.uint8)
    photo = Image.fromarray(np.stack([np.tile(ramp, (1500, 1)), np.full((1500, 2000), 90, np.uint8)] * 2, 2)[..., :3])
    photo.save(tmp_path / "photo.jpg", quality=95)
    drawn = [np.asarray(contact_sheet([SheetRow(source, "q", ())]), int) for source in (photo, tmp_path / "photo.jpg")]
    assert np.abs(drawn[0] - drawn[1]).max() <= 6


def test_transparent_parts_show_the_paper():
    image = Image.new("RGBA", (96, 96), (*FILLS[0], 255))
    image.paste((0, 0, 0, 0), (0, 0, 96, 48))
    left, top, right, bottom = box(sheet := contact_sheet([SheetRow(image, "q", ())]), FILLS[0])
    assert (right - left + 1, bottom - top + 1) == (96, 48)
    assert sheet.getpixel((int(left), int(top) - 1)) == (255, 255, 255)


def test_a_picture_is_turned_as_its_camera_says_and_left_unchanged():
    image = Image.new("RGB", (40, 40), FILLS[0])
    image.paste(FILLS[1], (0, 0, 40, 20))
    image.getexif()[0x0112] = 3  # upside down
    before = image.tobytes()
    sheet = contact_sheet([SheetRow(image, "q", ())])
    assert box(sheet, FILLS[0])[3] < box(sheet, FILLS[1])[1]
    assert image.tobytes() == before


def test_the_same_rows_give_the_same_sheet():
    assert contact_sheet([one_row(True, None)]).tobytes() == contact_sheet([one_row(True, None)]).tobytes()


def test_the_size_is_bounded_and_the_refusal_says_what_to_do():
    hit = Hit("missing.png", "x", 0.5, is_right=True)
    for rows in ([SheetRow("missing.png", "q", (hit,) * 200)], [SheetRow("missing.png", "q", ())] * 200):
        with pytest.raises(ConfigError, match=f"limit is {MAX_SIDE}.*fewer rows or hits, or lower tile"):
            contact_sheet(rows)
    assert max(contact_sheet([SheetRow("missing.png", "q", (hit,) * 65)] * 48).size) <= MAX_SIDE


@pytest.mark.parametrize("tile", [0, 47, 257, -1])
def test_a_tile_outside_its_limits_is_refused(tile):
    with pytest.raises(ConfigError, match=r"48\.\.256"):
        contact_sheet([one_row(True)], tile=tile)


def test_a_sheet_needs_a_row():
    with pytest.raises(ConfigError, match="at least one row"):
        contact_sheet([])
