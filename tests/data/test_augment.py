"""Augmentation: a function of (seed, epoch, sample index) alone, uniform, and exact where it only copies pixels."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn.data import augment
from opqn.data.augment import Augmentation, augment_batch, center_crop, epoch_order
from opqn.errors import ConfigError

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
EVERYTHING = Augmentation(rotate_degrees=20, scale=0.2, brightness=0.2, contrast=0.3, erase=0.5)


def mix(value):
    """SplitMix64's output function, in plain integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


def draws_of(seed, epoch, index, count):
    key = 2
    for part in (seed, epoch):
        key = mix(((key ^ part) + GAMMA) & WORD)
    sample = mix((key + (index + 1) * GAMMA) & WORD)
    return [(mix((sample + (i + 1) * GAMMA) & WORD) >> 11) / 2**53 for i in range(count)]


def noise(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_the_hash_is_splitmix64():
    """First outputs for the state 1234567, as published with the algorithm."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = np.array([(1234567 + i * GAMMA) & WORD for i in range(1, 5)], dtype=np.uint64)
    assert augment._mix(states).tolist() == expected
    assert [mix(int(state)) for state in states] == expected


@settings(deadline=None)
@given(
    st.integers(0, 2**70),
    st.integers(0, 2000),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=8),
    st.integers(1, 9),
)
def test_without_settings_the_crop_is_an_exact_piece_of_the_image(seed, epoch, indices, crop):
    images = noise(len(indices), 9)
    crops = augment_batch(images, crop, seed=seed, epoch=epoch, indices=indices)
    assert crops.shape == (len(indices), 3, crop, crop)
    assert crops.dtype == torch.uint8
    for image, index, result in zip(images, indices, crops, strict=True):
        top, left, flip = draws_of(seed & WORD, epoch, index, 3)
        row, column = int(top * (10 - crop)), int(left * (10 - crop))
        piece = image[row : row + crop, column : column + crop]
        assert np.array_equal(result.permute(1, 2, 0), piece[:, ::-1] if flip < 0.5 else piece)


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(12)), st.integers(1, 12), st.sampled_from([Augmentation(), EVERYTHING]), st.integers(0, 9))
def test_a_sample_looks_the_same_in_any_batch(order, size, setting, epoch):
    images = noise(12, 20)
    together = augment_batch(images, 16, seed=5, epoch=epoch, indices=range(12), settings=setting)
    for start in range(0, 12, size):
        part = order[start : start + size]
        crops = augment_batch(images[part], 16, seed=5, epoch=epoch, indices=part, settings=setting)
        assert torch.equal(crops, together[part])


def test_a_sample_looks_the_same_at_112_pixels_alone_and_in_a_batch():
    images = noise(16, 120)
    together = augment_batch(images, 112, seed=0, epoch=0, indices=range(16), settings=EVERYTHING)
    for i in range(16):
        alone = augment_batch(images[i : i + 1], 112, seed=0, epoch=0, indices=[i], settings=EVERYTHING)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"indices": range(100, 140)}])
def test_seed_epoch_and_index_each_change_the_draw(change):
    images = np.repeat(noise(1, 12), 40, axis=0)
    values = {"seed": 0, "epoch": 0, "indices": range(40)}
    assert not torch.equal(augment_batch(images, 8, **values), augment_batch(images, 8, **{**values, **change}))


def test_seed_and_epoch_do_not_trade_places():
    first, second = (augment._draw(*pair, np.arange(50, dtype=np.uint64)) for pair in ((1, 2), (2, 1)))
    assert not np.isin(first, second).any()


def test_draws_are_uniform_and_independent():
    """Chi-square over 64 cells (99.99 % point: 114) for each draw, pairs of draws and neighbouring samples."""
    draws = augment._draw(7, 3, np.arange(64_000, dtype=np.uint64))
    assert draws.min() >= 0
    assert draws.max() < 1

    def chi_square(cells):
        return ((np.bincount(cells, minlength=64) - len(cells) / 64) ** 2).sum() / (len(cells) / 64)

    for draw in draws:
        assert chi_square((draw * 64).astype(int)) < 114
        assert chi_square((draw[:-1] * 8).astype(int) * 8 + (draw[1:] * 8).astype(int)) < 114
    for first, second in pairwise(draws):
        assert chi_square((first * 8).astype(int) * 8 + (second * 8).astype(int)) < 114


def test_epochs_differ_for_the_same_sample_uniformly():
    offsets = [int(augment._draw(0, epoch, np.array([17], np.uint64))[0, 0] * 4) for epoch in range(4000)]
    assert np.abs(np.bincount(offsets, minlength=4) - 1000).max() < 130


def test_every_offset_and_both_sides_occur_equally_often():
    """A 4-px crop of a 6-px image: 9 places, mirrored or not; the crop's corners say which."""
    row, column = np.indices((6, 6))
    image = np.stack([row, column, row * 0], axis=2).astype(np.uint8)
    crops = augment_batch(np.repeat(image[None], 9000, axis=0), 4, seed=1, epoch=2, indices=range(9000))
    tops, lefts = crops[:, 0, 0, 0], torch.minimum(crops[:, 1, 0, 0], crops[:, 1, 0, 3])
    mirrored = crops[:, 1, 0, 0] > crops[:, 1, 0, 3]
    counts = torch.bincount(tops.long() * 6 + lefts.long() * 2 + mirrored.long(), minlength=18)
    assert len(counts) == 18
    assert (counts - 500).abs().max() < 100


def test_flip_can_be_off():
    images = np.tile(np.arange(6, dtype=np.uint8)[None, None, :, None], (50, 6, 1, 3))
    crops = augment_batch(images, 6, seed=0, epoch=0, indices=range(50), flip=False)
    assert torch.equal(crops[:, 0, 0], torch.arange(6, dtype=torch.uint8).expand(50, 6))


def test_tensors_and_read_only_arrays_give_the_same_as_arrays():
    images = noise(4, 8)
    expected = augment_batch(images, 6, seed=0, epoch=0, indices=[3, 1, 4, 1])
    assert torch.equal(
        augment_batch(torch.from_numpy(images), 6, seed=0, epoch=0, indices=torch.tensor([3, 1, 4, 1])), expected
    )
    images.flags.writeable = False
    assert torch.equal(augment_batch(images, 6, seed=0, epoch=0, indices=np.array([3, 1, 4, 1])), expected)


def test_interpolation_without_turn_or_zoom_is_the_exact_crop():
    images = noise(30, 20)
    nearly = Augmentation(rotate_degrees=1e-9)
    exact = augment_batch(images, 15, seed=2, epoch=0, indices=range(30))
    assert torch.equal(augment_batch(images, 15, seed=2, epoch=0, indices=range(30), settings=nearly), exact)


def test_rotation_turns_by_the_drawn_angle():
    """A bright dot off the middle moves along a circle, by the angle that the fourth draw says."""
    side = 41
    image = np.zeros((1, side, side, 3), np.uint8)
    image[0, 19:22, 34:37] = 255  # middle (20, 35): 15 px to the right of the image's middle
    for index in range(20):
        turned = augment_batch(
            image, side, seed=0, epoch=0, indices=[index], flip=False, settings=Augmentation(rotate_degrees=180)
        )[0, 0].double()
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        y, x = ((turned * grid).sum() / turned.sum() - 20 for grid in (rows, columns))
        angle = np.deg2rad((2 * draws_of(0, 0, index, 4)[3] - 1) * 180)
        assert abs(x - 15 * np.cos(angle)) < 0.3
        assert abs(y + 15 * np.sin(angle)) < 0.3


def test_scale_zooms_by_the_drawn_factor():
    image = np.zeros((1, 61, 61, 3), np.uint8)
    image[0, 20:41, 20:41] = 255
    for index in range(20):
        zoomed = augment_batch(image, 61, seed=0, epoch=0, indices=[index], settings=Augmentation(scale=0.4))
        factor = 1 + (2 * draws_of(0, 0, index, 5)[4] - 1) * 0.4
        assert abs(zoomed[0, 0].double().sum() / 255 / 21**2 - factor**2) < 0.1


def test_brightness_shifts_and_contrast_stretches_about_mid_grey():
    images = np.full((200, 4, 4, 3), 100, np.uint8)
    images[:, :, :2] = 150
    brighter = augment_batch(
        images, 4, seed=0, epoch=0, indices=range(200), flip=False, settings=Augmentation(brightness=0.2)
    ).int()
    shift = brighter[:, 0, 0, 3] - 100
    assert torch.equal(brighter[:, 0, 0, 0] - 150, shift)
    assert -51 <= shift.min() < -40
    assert 40 < shift.max() <= 51
    stretched = augment_batch(
        images, 4, seed=0, epoch=0, indices=range(200), flip=False, settings=Augmentation(contrast=0.4)
    ).int()
    gap = stretched[:, 0, 0, 0] - stretched[:, 0, 0, 3]
    assert 29 <= gap.min() < 33
    assert 67 < gap.max() <= 71


def test_values_are_clipped_not_wrapped():
    images = np.full((100, 2, 2, 3), 255, np.uint8)
    crops = augment_batch(images, 2, seed=0, epoch=0, indices=range(100), settings=Augmentation(brightness=0.5))
    assert crops.min() >= 127
    assert (crops == 255).all(dim=(1, 2, 3)).float().mean() > 0.3


def test_erase_greys_a_square_of_the_stated_size_and_frequency():
    images = np.zeros((2000, 40, 40, 3), np.uint8)
    crops = augment_batch(images, 40, seed=0, epoch=0, indices=range(2000), settings=Augmentation(erase=0.3))
    assert set(crops.unique().tolist()) == {0, 127}
    grey = (crops == 127).all(dim=1)
    hit = grey.any(dim=(1, 2))
    assert abs(hit.float().mean() - 0.3) < 0.05
    heights, widths = grey.any(dim=2).sum(dim=1)[hit], grey.any(dim=1).sum(dim=1)[hit]
    assert torch.equal(heights, widths)
    assert torch.equal(heights * widths, grey.sum(dim=(1, 2))[hit])
    assert heights.min() == 10
    assert heights.max() == 19


def test_center_crop_is_the_middle():
    images = noise(3, 35)
    assert torch.equal(center_crop(images, 32), torch.from_numpy(images[:, 1:33, 1:33]).permute(0, 3, 1, 2))
    assert torch.equal(center_crop(images, 35), torch.from_numpy(images).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("images", "crop"),
    [
        (np.zeros((2, 5, 6, 3), np.uint8), 3),
        (np.zeros((2, 5, 5, 1), np.uint8), 3),
        (np.zeros((5, 5, 3), np.uint8), 3),
        (np.zeros((2, 5, 5, 3), np.float32), 3),
        (np.zeros((2, 5, 5, 3), np.uint8), 6),
        (np.zeros((2, 5, 5, 3), np.uint8), 0),
    ],
)
def test_other_shapes_and_types_are_refused(images, crop):
    with pytest.raises(ConfigError, match=r"uint8|crop is"):
        augment_batch(images, crop, seed=0, epoch=0, indices=[0, 1])
    with pytest.raises(ConfigError, match=r"uint8|crop is"):
        center_crop(images, crop)


def test_each_image_needs_an_index():
    with pytest.raises(ConfigError, match="2 images need as many indices"):
        augment_batch(noise(2, 5), 4, seed=0, epoch=0, indices=[1])


@pytest.mark.parametrize("values", [{"rotate_degrees": -1}, {"scale": 1}, {"erase": 1.1}, {"blur": 1}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        Augmentation(**values)


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(0, 2**70), st.integers(0, 10**6))
def test_an_epochs_order_is_a_permutation_that_depends_on_nothing_else(count, seed, epoch):
    order = epoch_order(count, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, epoch_order(count, seed, epoch))


def test_orders_differ_between_epochs_and_are_uniform():
    orders = np.array([epoch_order(4, 0, epoch) for epoch in range(4800)])
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert np.abs(counts - 200).max() < 70
