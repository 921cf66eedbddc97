"""Vectors are those of the network, whatever its way of input; and nobody else's."""

import numpy as np
import pytest
from onnx import TensorProto, helper, save_model

from opqn.errors import ConfigError, CorruptFileError, DataError
from opqn.faces import EmbedderConfig, FaceEmbedder


def write_net(path, shape, extra_output=False, dtype=TensorProto.FLOAT):
    """Write a network whose vector is its input, flattened: it shows exactly what it was fed."""
    outputs = ["y", "z"] if extra_output else ["y"]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], [name]) for name in outputs],
        "net",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def crop(size=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def test_the_same_faces_have_the_vectors_computed_elsewhere(lfw, embedder):
    images, expected = lfw
    vectors = embedder.embed(images, threads=1)
    assert vectors.shape == expected.shape
    assert vectors.dtype == np.float32
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert ((vectors * expected).sum(1) > 0.99).all()


def test_pictures_of_one_person_are_nearer_than_those_of_two(embedder, pipeline, orl):
    faces = [pipeline.find(orl(person, picture))[0].crop for person in (1, 4, 7, 13) for picture in (1, 2)]
    vectors = embedder.embed(faces)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    likeness = vectors @ vectors.T
    for one in range(8):
        others = np.delete(likeness[one], [one, one ^ 1])
        assert likeness[one, one ^ 1] > others.max() + 0.1


def test_vectors_depend_neither_on_company_nor_on_threads(embedder):
    crops = np.stack([crop(112, seed) for seed in range(5)])
    together = embedder.embed(crops, threads=1)
    np.testing.assert_array_equal(embedder.embed(list(crops), threads=3), together)
    for one, vector in zip(crops, together, strict=True):
        np.testing.assert_array_equal(embedder.embed([one]), vector[None])


def test_no_crops_give_no_vectors(embedder):
    assert embedder.embed([]).shape == (0, 128)
    assert embedder.embed(np.zeros((0, 112, 112, 3), np.uint8)).dtype == np.float32


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (127.5, 128.0), ((10.0, 20.0, 30.0), (1.0, 2.0, 4.0))])
@pytest.mark.parametrize("batch", [1, "N"])
def test_pixels_are_fed_as_configured(tmp_path, layout, color, mean, std, batch):
    shape = [batch, 3, 20, 20] if layout == "NCHW" else [batch, 20, 20, 3]
    path = write_net(tmp_path / "net.onnx", shape)
    config = EmbedderConfig(input_size=20, layout=layout, color=color, mean=mean, std=std, normalize=False)
    embedder = FaceEmbedder(path, config)
    assert embedder.dim == 1200
    crops = [crop(seed=seed) for seed in range(3)]
    for one, vector in zip(crops, embedder.embed(crops), strict=True):
        expected = np.zeros((20, 20, 3))
        for channel in range(3):
            source = channel if color == "RGB" else 2 - channel
            m, s = (np.broadcast_to(value, 3)[channel] for value in (mean, std))
            expected[:, :, channel] = (one[:, :, source] - m) / s
        if layout == "NCHW":
            expected = expected.transpose(2, 0, 1)
        np.testing.assert_allclose(vector, expected.ravel(), rtol=1e-6, atol=1e-5)


def test_flip_average_makes_mirror_images_equal(tmp_path):
    path = write_net(tmp_path / "net.onnx", [1, 3, 20, 20])
    config = EmbedderConfig(input_size=20, flip_average=True, normalize=False)
    one = crop()
    here, there = FaceEmbedder(path, config).embed([one, one[:, ::-1]])
    np.testing.assert_array_equal(here, there)
    mean = (one.astype(np.float32) + one[:, ::-1]) / 2
    np.testing.assert_allclose(here, mean.transpose(2, 0, 1).ravel())


def test_crops_of_other_sizes_are_resized(tmp_path):
    path = write_net(tmp_path / "net.onnx", [1, 3, 20, 20])
    embedder = FaceEmbedder(path, EmbedderConfig(input_size=20, normalize=False))
    vectors = embedder.embed([np.full((size, size + 3, 3), 77, np.uint8) for size in (1, 10, 50)])
    np.testing.assert_allclose(vectors, 77, atol=1)


def test_one_of_several_outputs_has_to_be_named(tmp_path):
    path = write_net(tmp_path / "net.onnx", [1, 3, 20, 20], extra_output=True)
    with pytest.raises(ConfigError, match="set output to one of y, z"):
        FaceEmbedder(path, EmbedderConfig(input_size=20))
    with pytest.raises(ConfigError, match="no output 'q'"):
        FaceEmbedder(path, EmbedderConfig(input_size=20, output="q"))
    assert FaceEmbedder(path, EmbedderConfig(input_size=20, output="z")).dim == 1200


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ([1, 3, 20, 20], {"input_size": 24}),
        ([1, 3, 20, 20], {"input_size": 20, "layout": "NHWC"}),
        ([4, 3, 20, 20], {"input_size": 20}),
        ([1, 1, 20, 20], {"input_size": 20}),
    ],
)
def test_a_network_that_takes_something_else_is_refused_at_once(tmp_path, shape, settings):
    path = write_net(tmp_path / "net.onnx", shape)
    with pytest.raises(ConfigError, match="takes tensor"):
        FaceEmbedder(path, EmbedderConfig(**settings))


def test_a_network_that_takes_other_numbers_is_refused(tmp_path):
    path = write_net(tmp_path / "net.onnx", [1, 3, 20, 20], dtype=TensorProto.DOUBLE)
    with pytest.raises(ConfigError, match=r"takes tensor\(double\)"):
        FaceEmbedder(path, EmbedderConfig(input_size=20))


def test_a_network_of_huge_or_single_outputs_is_no_face_network(tmp_path):
    path = write_net(tmp_path / "net.onnx", [1, 3, 160, 160])
    with pytest.raises(DataError, match="76800 values"):
        FaceEmbedder(path, EmbedderConfig(input_size=160))


def test_values_that_are_not_finite_are_an_error(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Log", ["f"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 20, 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    embedder = FaceEmbedder(tmp_path / "n.onnx", EmbedderConfig(input_size=20))
    with pytest.raises(DataError, match="not finite"):
        embedder.embed([np.zeros((20, 20, 3), np.uint8)])


def test_a_vector_of_zeros_stays_zero(tmp_path):
    path = write_net(tmp_path / "net.onnx", [1, 3, 20, 20])
    assert not FaceEmbedder(path, EmbedderConfig(input_size=20)).embed([np.zeros((20, 20, 3), np.uint8)]).any()


def test_the_fingerprint_is_of_weights_and_config(tmp_path, embedder):
    path = write_net(tmp_path / "net.onnx", [1, 3, 20, 20])
    small = EmbedderConfig(input_size=20)
    first = FaceEmbedder(path, small)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    assert FaceEmbedder(copy, small).fingerprint == first.fingerprint  # the name of the file tells nothing
    prints = {
        embedder.fingerprint,
        first.fingerprint,
        FaceEmbedder(path, EmbedderConfig(input_size=20, mean=1.0)).fingerprint,
        FaceEmbedder(write_net(path, ["N", 3, 20, 20]), small).fingerprint,
    }
    assert len(prints) == 4
    assert all(len(value) == 64 for value in prints)


def test_the_fingerprint_of_the_ready_made_embedder_stays(embedder):
    assert embedder.fingerprint == "3ef692df9b5ca8e3d3c65e07742039739098687d20639645763bd22b63018db4"


def test_the_digest_of_a_file_is_checked(tmp_path):
    path = write_net(tmp_path / "net.onnx", [1, 3, 20, 20])
    with pytest.raises(CorruptFileError, match="SHA-256"):
        FaceEmbedder(path, EmbedderConfig(input_size=20), sha256="0" * 64)


@pytest.mark.parametrize("config", [{"mean": 127.5}, {"color": "BGR"}, {"input_size": 96}])
def test_the_input_of_the_ready_made_network_is_not_to_be_changed(config):
    with pytest.raises(ConfigError, match="its own input"):
        FaceEmbedder(config=EmbedderConfig(**config))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"std": 0.0}, "cannot be 0"),
        ({"std": (1.0, 0.0, 1.0)}, "cannot be 0"),
        ({"mean": float("nan")}, "finite"),
        ({"std": float("inf")}, "finite"),
        ({"color": "GRB"}, "color"),
        ({"input_size": 0}, "input_size"),
        ({"sizes": 3}, "unknown setting"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        EmbedderConfig(**settings)


@pytest.mark.parametrize("crops", [np.zeros((2, 9, 9, 4), np.uint8), np.zeros((2, 9, 9, 3)), ["a.jpg"], [None]])
def test_what_is_no_crop_is_refused(embedder, crops):
    with pytest.raises(ConfigError, match="a photo is"):
        embedder.embed(crops)


def test_negative_threads_are_refused(embedder):
    with pytest.raises(ConfigError, match="threads is -1"):
        embedder.embed([crop(112)], threads=-1)
