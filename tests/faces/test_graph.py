"""A network rewritten to run faster gives what it gave, and a hostile file is refused."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from opqn.errors import CorruptFileError, DataError
from opqn.faces.graph import parse, start_session
from opqn.faces.weights import SFACE, YUNET, Weights, load_weights


def save(path, nodes, initializers, inputs=("x",), ir_version=8):
    shape = ["N", 3, 16, 16]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)
    return weights(model, path)


def weights(model, path="net.onnx"):
    return Weights(path, model.SerializeToString(), "")


def raw_run(data, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def external(name="w", location="other.bin"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_sface_gives_what_the_file_gives_layer_by_layer():
    loaded = load_weights(SFACE)
    model = onnx.load_model_from_string(loaded.data)
    read = {name for node in model.graph.node for name in node.input}
    fed = [entry for entry in model.graph.input if entry.name == "data" or entry.name not in read]
    del model.graph.input[:]
    model.graph.input.extend(entry for entry in fed if entry.name == "data")
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 112, 112)).astype(np.float32)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    slow = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,), (fast,) = slow.run(None, {"data": x}), start_session(loaded).run(None, {"data": x})
    cosine = np.vdot(expected, fast) / np.linalg.norm(expected) / np.linalg.norm(fast)
    assert cosine > 1 - 1e-6
    np.testing.assert_allclose(fast, expected, atol=1e-4)


@pytest.mark.parametrize("slopes", [[0.25, -0.5, 1.5], [0, 1, 4], [0.1, 0.2, 900]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prelu_gives_what_it_gave(slopes, dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=kind),
        helper.make_node("PRelu", ["c", "a"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
    ]
    net = save("net.onnx", nodes, [numpy_helper.from_array(np.array(slopes, dtype)[:, None, None], "a")])
    x = np.random.default_rng(0).normal(0, 50, (2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(start_session(net).run(None, {"x": x})[0], raw_run(net.data, x), rtol=1e-6, atol=1e-5)


def test_slopes_that_are_computed_are_left_alone():
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["a3"]),
        helper.make_node("Squeeze", ["a3", "first"], ["a"]),
        helper.make_node("PRelu", ["x", "a"], ["y"]),
    ]
    net = save("net.onnx", nodes, [numpy_helper.from_array(np.array([0]), "first")])
    x = np.random.default_rng(0).normal(0, 1, (1, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(start_session(net).run(None, {"x": x})[0], raw_run(net.data, x), rtol=1e-6)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_listed_as_inputs_and_inputs_nobody_reads_are_dropped(ir_version):
    value = numpy_helper.from_array(np.float32([[[1]], [[2]], [[3]]]), "w")
    net = save("net.onnx", [helper.make_node("Mul", ["x", "w"], ["y"])], [value], ("x", "w", "old"), ir_version)
    session = start_session(net)
    assert [entry.name for entry in session.get_inputs()] == ["x"]
    np.testing.assert_allclose(session.run(None, {"x": np.ones((1, 3, 16, 16), np.float32)})[0][0, :, 0, 0], [1, 2, 3])


@pytest.mark.parametrize("inputs", [("x", "z"), ()])
def test_other_numbers_of_inputs_are_refused(inputs):
    one = numpy_helper.from_array(np.ones(3, np.float32), "one")
    nodes = [helper.make_node("Sum", [*inputs, "one"], ["y"])]
    with pytest.raises(DataError, match="one input"):
        start_session(save("net.onnx", nodes, [one], inputs))


def in_branch(tensor):
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["o"])],
        "branch",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
        [tensor],
    )
    return [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "sparse", "function"])
@pytest.mark.parametrize("location", ["other.bin", "/etc/passwd", "../../secret"])
def test_data_in_other_files_are_refused_wherever_they_hide(place, location):
    tensor = external(location=location)
    x_and_w = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = onnx.load_model_from_string(save("net.onnx", x_and_w, []).data)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    elif place == "branch":
        model.graph.node.extend(in_branch(tensor))
    elif place == "sparse":
        model.graph.sparse_initializer.add(values=tensor, dims=[3])
    else:
        function = model.functions.add(name="f", domain="d")
        function.node.append(helper.make_node("Constant", [], ["w"], value=tensor))
    with pytest.raises(CorruptFileError, match="keeps weights in other files"):
        start_session(weights(model))


@pytest.mark.parametrize("data", [b"\x00" * 100, b"PK\x03\x04 a zip file", b"not a network", bytes(range(256))])
def test_what_is_no_network_is_refused(data):
    with pytest.raises(CorruptFileError, match="not an ONNX model"):
        parse(Weights("net.onnx", data, ""))


def test_a_cut_file_is_refused():
    whole = load_weights(YUNET)
    for length in (10, 1000, 60_000, len(whole.data) - 1):
        with pytest.raises(CorruptFileError):
            start_session(whole._replace(data=whole.data[:length]))


def test_a_network_that_onnxruntime_refuses_is_reported():
    net = save("net.onnx", [helper.make_node("NoSuchLayer", ["x"], ["y"])], [])
    with pytest.raises(CorruptFileError, match="cannot load"):
        start_session(net)
