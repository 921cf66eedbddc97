"""Reading images: every mode comes out as upright 8-bit RGB, and a hostile file as a DataError with a reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from opqn.data.images import MAX_PIXELS, UnreadableImageError, load_image, to_array
from opqn.errors import ConfigError, DataError


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(image, place=(0, 0)):
    assert image.mode == "RGB"
    return image.getpixel(place)


def png_of_size(width, height):
    """A PNG that says it is this large and holds next to nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9)))]
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def noise(height, width, channels=3):
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM", "BMP", "WEBP"])
def test_reads_each_format_from_a_path_its_text_and_bytes(tmp_path, kind):
    data = encode(Image.new("RGB", (8, 6), (200, 30, 60)), kind)
    path = tmp_path / "face.bin"
    path.write_bytes(data)
    for source in (path, str(path), data):
        image = load_image(source)
        assert image.size == (8, 6)
        assert np.abs(np.array(pixel(image)) - (200, 30, 60)).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_refuses_other_formats(kind):
    with pytest.raises(UnreadableImageError, match="not a JPEG, PNG"):
        load_image(encode(Image.new("RGB", (8, 6)), kind))


def test_a_pil_image_stays_as_it_was():
    original = Image.new("RGB", (8, 6), "red")
    result = load_image(original)
    result.putpixel((0, 0), (1, 2, 3))
    assert pixel(original) == (255, 0, 0)
    assert load_image(Image.new("L", (3, 2), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_grey_palette_and_bitmap():
    assert pixel(load_image(encode(Image.new("L", (4, 4), 90)))) == (90, 90, 90)
    palette = Image.new("RGB", (4, 4), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert pixel(load_image(encode(palette))) == (10, 20, 30)
    assert pixel(load_image(encode(Image.new("1", (4, 4), 1)))) == (255, 255, 255)


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, (100, 0, 50)), (51, (224, 204, 214))])
def test_transparency_comes_out_on_white(alpha, expected):
    assert pixel(load_image(encode(Image.new("RGBA", (4, 4), (100, 0, 50, alpha))))) == expected


def test_transparent_grey_palette_and_colour_key():
    assert pixel(load_image(encode(Image.new("LA", (4, 4), (0, 0))))) == (255, 255, 255)
    assert pixel(load_image(encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)))) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 8, 8, 8])
    palette.putpixel((1, 0), 1)
    image = load_image(encode(palette, transparency=bytes([0, 255])))
    assert (pixel(image), pixel(image, (1, 0))) == ((255, 255, 255), (8, 8, 8))


def test_cmyk_becomes_rgb():
    image = load_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.array(pixel(image)) - (255, 0, 0)).max() <= 4


def test_16_bit_grey_is_scaled_to_8():
    values = np.array([[0, 128, 129, 25700, 65535]], np.uint16)
    expected = [0, 0, 1, 100, 255]
    pgm = b"P5 5 1 65535\n" + values.astype(">u2").tobytes()
    png = encode(Image.fromarray(values))
    assert Image.open(io.BytesIO(png)).mode == "I;16"
    for source in (pgm, png, Image.fromarray(values.astype(np.int32))):
        assert np.array(load_image(source))[0, :, 0].tolist() == expected
    colour = b"P6 1 1 65535\n" + np.array([0, 25700, 65535], ">u2").tobytes()
    assert pixel(load_image(colour)) == (0, 100, 255)


def test_float_images_are_refused_because_their_range_is_unknown():
    with pytest.raises(UnreadableImageError, match="save it with 8 or 16 bits"):
        load_image(Image.new("F", (3, 3), 0.5))


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (1, 0)), (3, (1, 2)), (4, (0, 2)), (5, (0, 0)), (6, (2, 0)), (7, (2, 1)), (8, (0, 1))],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, corner, kind):
    """The stored picture is 2 x 3 with one white corner; ``corner`` is where the standard shows it."""
    stored = Image.new("RGB", (2, 3))
    stored.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = load_image(encode(stored, kind, exif=exif, lossless=True))
    assert shown.size == ((2, 3) if orientation < 5 else (3, 2))
    assert np.argwhere(np.array(shown)[:, :, 0] == 255).tolist() == [[corner[1], corner[0]]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow warns of it
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"]
)
def test_broken_exif_does_not_spoil_a_picture(exif):
    assert load_image(encode(Image.new("RGB", (40, 20)), "JPEG", exif=exif)).size in ((40, 20), (20, 40))


def test_broken_exif_of_a_pil_image_is_passed_over():
    image = Image.new("RGB", (4, 2), "red")
    image.info["exif"] = b"Exif\0\0garbage"
    assert load_image(image).size == (4, 2)
    image.info["exif"] = 7
    assert load_image(image).size == (4, 2)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(UnreadableImageError, match=r"of mode RGB and size 0 x 5: it has no pixels \(0 x 5\)"):
        load_image(Image.new("RGB", (0, 5)))


def test_a_file_that_may_not_be_read_is_refused_with_the_systems_reason(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "face.jpg").write_bytes(b"")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UnreadableImageError, match=r"face\.jpg: Permission denied$"):
        load_image(tmp_path / "face.jpg")


def test_a_lack_of_memory_is_not_taken_for_a_bad_image(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        load_image(b"anything")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind):
    if not features.check("webp"):
        pytest.skip("this Pillow was built without WebP")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert pixel(load_image(data)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(9_000, 8_000), (10_000, 10_000), (20_000, 20_000), (MAX_PIXELS + 1, 1)])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, size, action):
    limit = Image.MAX_IMAGE_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(*size))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(UnreadableImageError, match=r"bomb\.png: it has too many pixels; at most 64 megapixels"):
            load_image(path)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_1_x_1_is_a_flat_face():
    image = load_image(encode(Image.new("RGB", (1, 1), (3, 4, 5))), min_side=32)
    pixels = to_array(image, 32)
    assert pixels.shape == (32, 32, 3)
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[3, 4, 5]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused_with_path_and_reason(tmp_path, kind, share):
    data = encode(noise(60, 50), kind)
    path = tmp_path / "half"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"cannot read the image .*half: .{8,}"):
        load_image(path)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"P5", b"P5 0 5 255\n", b"BM"]
)
def test_unreadable_bytes_are_refused(data):
    with pytest.raises(DataError, match=f"cannot read the image of {len(data)} bytes: "):
        load_image(data)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg: no such file"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="not a regular file"):
        load_image(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        load_image("a\0b")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "PPM", "BMP", "WEBP"]), st.data())
def test_a_damaged_file_is_an_image_or_a_data_error(kind, draw):
    data = bytearray(encode(noise(9, 11), kind))
    for _ in range(draw.draw(st.integers(1, 6))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        image = load_image(bytes(data))
    except DataError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= MAX_PIXELS


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 200))
def test_a_jpeg_is_never_decoded_below_the_wanted_side(width, height, min_side):
    data = encode(Image.new("RGB", (width, height)), "JPEG")
    shorter = min(load_image(data, min_side=min_side).size)
    assert shorter >= min(min_side, width, height)
    if min(width, height) < 8 * min_side:
        assert shorter < 2 * min_side + 1 or min(width, height) < 2 * min_side


def test_a_large_jpeg_is_decoded_near_the_wanted_side():
    data = encode(Image.new("RGB", (1600, 1200)), "JPEG")
    assert load_image(data, min_side=120).size == (200, 150)
    assert load_image(data).size == (1600, 1200)


def test_to_array_averages_when_it_shrinks():
    """Antialiasing: a fine checkerboard becomes mid-grey instead of black or white."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    pixels = to_array(Image.fromarray(board.astype(np.uint8)).convert("RGB"), 8)
    assert np.abs(pixels.astype(int) - 127).max() <= 3


def test_to_array_keeps_pixels_of_the_right_size_and_stretches_others():
    image = noise(7, 7)
    assert np.array_equal(to_array(image, 7), np.array(image))
    assert to_array(noise(3, 40), 9).shape == (9, 9, 3)
    assert to_array(Image.new("L", (5, 5), 9), 2).tolist() == [[[9] * 3] * 2] * 2


def test_lengths_must_be_positive():
    with pytest.raises(ConfigError, match="min_side is 0"):
        load_image(b"", min_side=0)
    with pytest.raises(ConfigError, match="size is 0"):
        to_array(Image.new("RGB", (2, 2)), 0)
