"""The data set of the trainer: decoded once or on demand, and bad images never fatal, never silent."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from opqn.data.dataset import Batch, FaceDataset, keep_batch
from opqn.data.images import SkippedImage
from opqn.errors import ConfigError, DataError

R = 6
SIZES = {"decoded once": 1 << 20, "on demand": 0}


@pytest.fixture(params=SIZES, ids=list(SIZES))
def cache_bytes(request):
    return SIZES[request.param]


@pytest.fixture
def faces(tmp_path):
    """Write 12 flat images, grey value 10 times their number, of people 5, 5, 5, 7, 7, 7, 8 ...; some may be broken."""

    def write(broken=()):
        paths = [f"p{i // 3}/{i}.png" for i in range(12)]
        for i, path in enumerate(paths):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            if i in broken:
                (tmp_path / path).write_bytes(b"broken")
            else:
                Image.new("RGB", (9, 9), (10 * i,) * 3).save(tmp_path / path)
        return paths, [(5, 7, 8, 2)[i // 3] for i in range(12)]

    write.root = tmp_path
    return write


def values(batch):
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape[1:] == (R, R, 3)
    return (batch.images[:, 0, 0, 0] // 10).tolist()


def test_images_and_labels_come_in_the_order_asked_for(faces, cache_bytes):
    paths, labels = faces()
    data = FaceDataset(faces.root, paths, labels, R, cache_bytes=cache_bytes)
    assert data.fits == bool(cache_bytes)
    for _ in range(2):
        batch = data.__getitems__([7, 0, 11, 7])
        assert values(batch) == [7, 0, 11, 7]
        assert batch.labels.tolist() == [8, 5, 2, 8]
        assert batch.indices.tolist() == [7, 0, 11, 7]
        assert batch.skipped == ()
        image, label, delivered = data[4]
        assert (int(image[0, 0, 0]), label, delivered) == (40, 7, 4)
        data.preload()
    assert len(data) == 12
    assert data.classes.tolist() == [2, 5, 7, 8]
    assert data.skipped == ()


def test_decoded_images_are_read_only_once(faces):
    paths, labels = faces()
    data = FaceDataset(faces.root, paths, labels, R)
    data.preload()
    for path in paths:
        (faces.root / path).unlink()
    data.preload()
    assert values(data.__getitems__(range(12))) == list(range(12))


def test_unreadable_images_leave_a_preloaded_set_with_their_labels(faces):
    paths, labels = faces(broken=[1, 8])
    data = FaceDataset(faces.root, paths, labels, R)
    data.preload()
    good = [i for i in range(12) if i not in (1, 8)]
    assert data.paths == [paths[i] for i in good]
    assert data.labels.tolist() == [labels[i] for i in good]
    assert values(data.__getitems__(range(10))) == good
    assert [item.path for item in data.skipped] == ["p0/1.png", "p2/8.png"]
    assert "not a JPEG" in data.skipped[0].reason


def test_a_person_without_a_readable_image_is_no_class_after_preload(faces, cache_bytes):
    paths, labels = faces(broken=[3, 4, 5, 0])
    data = FaceDataset(faces.root, paths, labels, R, cache_bytes=cache_bytes)
    assert data.classes.tolist() == [2, 5, 7, 8]
    data.preload()
    assert data.classes.tolist() == [2, 5, 8]
    assert {"p1/3.png", "p1/4.png", "p1/5.png"} <= {path for path, _ in data.skipped}
    assert np.searchsorted(data.classes, data.labels).max() == 2
    assert 7 not in data.__getitems__(range(len(data))).labels


def test_on_demand_an_unreadable_image_is_replaced_by_the_next_good_one(faces):
    paths, labels = faces(broken=[4, 5, 11])
    data = FaceDataset(faces.root, paths, labels, R, cache_bytes=0)
    data.preload()
    assert data.skipped == ()
    batch = data.__getitems__([3, 4, 11, 5])
    assert values(batch) == [3, 6, 0, 6]
    assert batch.labels.tolist() == [7, 8, 5, 8]
    assert batch.indices.tolist() == [3, 6, 0, 6]
    assert [item.path for item in batch.skipped] == ["p1/4.png", "p1/5.png", "p3/11.png"]
    assert data.skipped == batch.skipped
    again = data.__getitems__([3, 4, 11, 5])
    assert values(again) == values(batch)
    assert again.skipped == ()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_delivers_whole_batches_and_tells_what_was_skipped(faces, workers):
    paths, labels = faces(broken=[4])
    data = FaceDataset(faces.root, paths, labels, R, cache_bytes=0)
    loader = DataLoader(data, batch_sampler=[[0, 4, 2], [11, 10], [4, 5]], collate_fn=keep_batch, num_workers=workers)
    batches = list(loader)
    assert all(isinstance(batch, Batch) for batch in batches)
    assert [values(batch) for batch in batches] == [[0, 5, 2], [11, 10], [5, 5]]
    for batch in batches:
        data.record(batch.skipped)
    assert [item.path for item in data.skipped] == ["p1/4.png"]


def test_record_keeps_each_image_once(faces):
    paths, labels = faces()
    data = FaceDataset(faces.root, paths, labels, R)
    data.record([SkippedImage("p0/0.png", "a"), SkippedImage("p0/0.png", "a")])
    data.record([SkippedImage("p0/0.png", "a")])
    assert data.skipped == (SkippedImage("p0/0.png", "a"),)


def test_nothing_readable_is_an_error_that_names_the_first(faces, cache_bytes):
    paths, labels = faces(broken=range(12))
    for act in (FaceDataset.preload, lambda data: data[3] if not cache_bytes else data.preload()):
        data = FaceDataset(faces.root, paths, labels, R, cache_bytes=cache_bytes)
        with pytest.raises(DataError, match=r"none of the 12 images .* the first is p0/0\.png: it is not a JPEG"):
            act(data)


def test_missing_files_are_skipped_too(faces, cache_bytes):
    paths, labels = faces()
    (faces.root / paths[2]).unlink()
    data = FaceDataset(faces.root, paths, labels, R, cache_bytes=cache_bytes)
    data.preload()
    data.__getitems__([2])
    assert data.skipped == (SkippedImage("p0/2.png", "no such file"),)


def test_preload_reports_progress_up_to_the_end(faces, cache_bytes):
    paths, labels = faces()
    seen = []
    FaceDataset(faces.root, paths, labels, R, cache_bytes=cache_bytes).preload(
        lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(DataError, match="no images"):
        FaceDataset(tmp_path, [], [], R)
    with pytest.raises(ConfigError, match="2 paths need as many labels, not 1"):
        FaceDataset(tmp_path, ["a/1", "a/2"], [0], R)
    with pytest.raises(ConfigError, match="resize"):
        FaceDataset(tmp_path, ["a/1"], [0], 0)
