"""Sets that are not faces: arrays become pictures, pixel for pixel, and the divisions are those of deep hashing."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import content, load, people, small, write_files, write_tar

from opqn.data.recipes import prepare
from opqn.data.recipes.general import plan_cifar10, plan_imagenet100
from opqn.data.splits import person_of
from opqn.errors import CorruptFileError, DataError

FASHION = Path("/usr/share/datasets/fashion-mnist")
CIFAR_SIZES = {"queries": 2, "train": 3}


def counts(paths):
    return sorted(np.unique([person_of(path) for path in paths], return_counts=True)[1].tolist())


@pytest.fixture
def cifar(tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = np.repeat(np.arange(10, dtype=np.uint8), 2)[:, None]
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        files[f"cifar-10-batches-bin/{name}.bin"] = np.hstack([labels, pixels]).tobytes()
    files["cifar-10-batches-bin/batches.meta.txt"] = b"airplane\n"
    return write_files(tmp_path / "in", files)


def test_cifar_is_divided_as_in_deep_hashing(cifar, tmp_path):
    recipe = small("cifar-10", plan_cifar10, [(10, 120)], **CIFAR_SIZES)
    splits = load(recipe.prepare(cifar, tmp_path / "out"))
    seen, database = splits["seen"], splits["database"]
    assert seen.query == database.query
    assert counts(seen.query) == [2] * 10
    assert counts(seen.train) == [3] * 10
    assert counts(database.gallery) == [10] * 10
    assert set(seen.train) < set(database.gallery)


def test_cifar_pictures_have_the_pixels_of_the_file(cifar, tmp_path):
    archive = write_tar(tmp_path / "cifar-10-binary.tar.gz", list(content(cifar).items()))
    prepared = small("cifar-10", plan_cifar10, [(10, 120)], **CIFAR_SIZES).prepare(archive, tmp_path / "out")
    data = (cifar / "cifar-10-batches-bin" / "test_batch.bin").read_bytes()
    record = np.frombuffer(data, np.uint8).reshape(20, 3073)[7]
    assert record[0] == 3
    with Image.open(prepared.root / "cat" / "test_batch-00007.png") as image:
        np.testing.assert_array_equal(np.asarray(image), record[1:].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar_in_pickles_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    source = write_files(tmp_path / "in", {"cifar-10-batches-py/data_batch_1": pickle.dumps(Bomb())})
    with pytest.raises(DataError, match=r"pickle format.*not read; download the binary version"):
        prepare("cifar-10", source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_damaged_cifar_files_are_refused(cifar, tmp_path):
    file = cifar / "cifar-10-batches-bin" / "data_batch_2.bin"
    whole = file.read_bytes()
    for data in (whole[:-1], b"\x0a" + whole[1:]):
        file.write_bytes(data)
        with pytest.raises(CorruptFileError, match=r"data_batch_2\.bin is no whole file"):
            prepare("cifar-10", cifar, tmp_path / "out")
    file.unlink()
    with pytest.raises(DataError, match="expected 10 classes and 60,000 images; found 10 classes and 100 images"):
        prepare("cifar-10", cifar, tmp_path / "out")


@pytest.fixture
def imagenet(tmp_path):
    classes = [f"n{i:08d}" for i in range(8)]
    files = people(classes, 9, "ILSVRC/train/{person}/{person}_{i}.JPEG")
    files |= people(classes, 2, "ILSVRC/val/{person}/ILSVRC2012_val_{i}.JPEG", 500)
    return write_files(tmp_path / "in", files)


def test_imagenet_is_divided_as_in_deep_hashing(imagenet, tmp_path):
    recipe = small("imagenet-100", plan_imagenet100, [(8, None)], train=4)
    splits = load(recipe.prepare(imagenet, tmp_path / "out"))
    assert counts(splits["seen"].train) == [4] * 8
    assert counts(splits["database"].gallery) == [9] * 8
    assert counts(splits["seen"].query) == [2] * 8
    assert all("/test/" in path for path in splits["seen"].query)


def test_of_more_classes_a_hundred_are_drawn_and_it_is_said(imagenet, tmp_path):
    recipe = small("imagenet-100", plan_imagenet100, [(5, None)], classes=5, train=4)
    drawn = [
        set(map(person_of, load(recipe.prepare(imagenet, tmp_path / f"{i}", seed=i))["seen"].train)) for i in (0, 1)
    ]
    assert list(map(len, drawn)) == [5, 5]
    assert drawn[0] != drawn[1]
    assert "they are not the published ones" in (tmp_path / "0" / "SOURCE.md").read_text()


def test_imagenet_without_validation_classes_is_refused(imagenet, tmp_path):
    (imagenet / "ILSVRC" / "val").rename(imagenet / "elsewhere")
    with pytest.raises(DataError, match="sort the validation images into folders of classes"):
        prepare("imagenet-100", imagenet, tmp_path / "out")


def idx(array):
    dims = np.array(array.shape, ">u4").tobytes()
    return b"\0\0\x08" + bytes([array.ndim]) + dims + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for part, number in (("train", 30), ("t10k", 10)):
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(rng.integers(0, 256, (number, 4, 4), dtype=np.uint8)))
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(np.arange(number, dtype=np.uint8) % 10))
    return write_files(tmp_path / "in", files)


def test_fashion_mnist_keeps_the_published_division(fashion, tmp_path):
    prepared = small("fashion-mnist", counts=[(10, 40)]).prepare(fashion, tmp_path / "out")
    seen = load(prepared)["seen"]
    assert (counts(seen.train), counts(seen.query)) == ([3] * 10, [1] * 10)
    with gzip.open(fashion / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8)[16:].reshape(10, 4, 4)
    with Image.open(prepared.root / "ankle-boot" / "test-00009.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels[9])


def test_unpacked_fashion_mnist_gives_the_same(fashion, tmp_path):
    plain = {name.removesuffix(".gz"): gzip.decompress(data) for name, data in content(fashion).items()}
    recipe = small("fashion-mnist")
    recipe.prepare(fashion, tmp_path / "a")
    recipe.prepare(write_files(tmp_path / "plain", plain), tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_damaged_fashion_mnist_is_refused(fashion, tmp_path):
    images = fashion / "train-images-idx3-ubyte.gz"
    labels = fashion / "train-labels-idx1-ubyte.gz"
    whole = images.read_bytes()
    plain = gzip.decompress(whole)
    good_labels = labels.read_bytes()
    for data in (
        whole[:50],
        plain,
        gzip.compress(plain[:-1]),
        gzip.compress(b""),
        gzip.compress(b"\0\0\x0d\x03" + plain[4:]),
    ):
        images.write_bytes(data)
        with pytest.raises(CorruptFileError, match="download it again"):
            prepare("fashion-mnist", fashion, tmp_path / "out")
    images.write_bytes(whole)
    for wrong in (np.arange(29, dtype=np.uint8) % 10, np.full(30, 10, np.uint8)):
        labels.write_bytes(gzip.compress(idx(wrong)))
        with pytest.raises(CorruptFileError, match="do not belong together"):
            prepare("fashion-mnist", fashion, tmp_path / "out")
    labels.write_bytes(good_labels)
    (fashion / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="lacks t10k-images"):
        prepare("fashion-mnist", fashion, tmp_path / "out")


def test_a_gzip_bomb_is_read_no_further_than_its_bound(fashion, tmp_path, monkeypatch):
    monkeypatch.setattr("opqn.data.recipes.general.MAX_FILE_BYTES", 1_000)
    (fashion / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((1000, 28, 28), np.uint8))))
    with pytest.raises(CorruptFileError, match="no whole file"):
        prepare("fashion-mnist", fashion, tmp_path / "out")


def test_digits_need_no_source(tmp_path):
    prepared = prepare("digits", None, tmp_path)
    seen = load(prepared)["seen"]
    assert prepared.num_images == len(seen.train) + len(seen.query) == 1_797
    assert len(counts(seen.query)) == 10
    with Image.open(prepared.root / seen.query[0]) as image:
        assert image.size == (8, 8)
        assert np.asarray(image).max() > 200


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian(tmp_path):
    prepared = prepare("fashion-mnist", FASHION, tmp_path)
    assert (len(load(prepared)["seen"].train), len(load(prepared)["seen"].query)) == (60_000, 10_000)
