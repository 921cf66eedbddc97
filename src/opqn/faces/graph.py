"""An ONNX file becomes a session of onnxruntime: checked first, then rewritten to run faster.

Two things make the ready-made network slow as it stands: weights of 8 bits are turned into floats at every run, and
onnxruntime has no fast PRelu (61 % of the time of SFace, once the first is mended). Together they cost a factor of
almost four.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

import numpy as np

from opqn.errors import CorruptFileError, DataError
from opqn.faces._require import require
from opqn.faces.weights import Weights

_QUANTIZES: Final = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_MAX_SLOPE: Final = 4.0


def parse(weights: Weights) -> Any:
    """Return the ``onnx.ModelProto`` in ``weights``.

    Raises:
        CorruptFileError: it is no ONNX model, or wants to read other files.
    """
    onnx = require("onnx")
    try:
        model = onnx.load_model_from_string(weights.data)
    except Exception as error:  # protobuf's errors differ between its implementations
        raise CorruptFileError(f"{weights.path} is not an ONNX model; export or get it again") from error
    if not model.graph.node:
        raise CorruptFileError(f"{weights.path} is not an ONNX model: it has no layers; export or get it again")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise CorruptFileError(
            f"{weights.path} keeps weights in other files, which are not read for safety; save it as one file: "
            "onnx.save_model(model, path, save_as_external_data=False)"
        )
    return model


def start_session(weights: Weights) -> Any:
    """Return an ``onnxruntime.InferenceSession`` of one input on the processor, one thread a run.

    Its ``run`` may be called from many threads at once; that scales better than many threads inside one run.

    Raises:
        CorruptFileError: no ONNX model, one that reads other files, or one that onnxruntime cannot load.
        DataError: the network has several inputs, or none.
    """
    ort = require("onnxruntime")
    model = parse(weights)
    _drop_unneeded_inputs(model)
    if len(model.graph.input) != 1:
        names = ", ".join(entry.name for entry in model.graph.input) or "none"
        raise DataError(f"{weights.path} is no face network: it has to have one input and has {names}")
    _split_prelus(model.graph)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if _QUANTIZES.isdisjoint(node.op_type for node in model.graph.node):
        # Only the weights are of 8 bits. onnxruntime keeps them so, waiting for layers that compute in 8 bits;
        # told that there are none, it turns them into floats once, when it loads.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        reason = next(iter(str(error).splitlines()), "")
        raise CorruptFileError(f"onnxruntime cannot load {weights.path}: {reason}; export it again") from error


def _tensors(model: Any) -> Iterator[Any]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for training in model.training_info:
        yield from chain(_graph_tensors(training.initialization), _graph_tensors(training.algorithm))


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for attribute in chain.from_iterable(node.attribute for node in nodes):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _drop_unneeded_inputs(model: Any) -> None:
    """Leave the inputs that have to be fed.

    Old exporters list every weight as an input, which forbids to compute with it ahead; a quantizer then leaves the
    inputs of the weights it replaced, which no layer reads.
    """
    graph = model.graph
    given = {tensor.name for tensor in graph.initializer}
    read = {name for node in graph.node for name in node.input}
    fed = [entry for entry in graph.input if entry.name in read - given]
    del graph.input[:]
    graph.input.extend(fed)
    model.ir_version = max(model.ir_version, 4)  # before 4, a weight had to be an input


def _split_prelus(graph: Any) -> None:
    """Write PRelu with constant slopes a as ``(1 - a) * relu(x) + a * x``, four layers that have fast kernels."""
    helper, numpy_helper = require("onnx.helper"), require("onnx.numpy_helper")
    given = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        slopes = given.get(node.input[1]) if node.op_type == "PRelu" else None
        values = None if slopes is None else numpy_helper.to_array(slopes)
        # Steep slopes would cancel digits in (1 - a) * x + a * x; trained ones lie within 1.
        if values is None or values.dtype != np.float32 or not (np.abs(values) <= _MAX_SLOPE).all():
            nodes.append(node)
            continue
        (x, slope), y = node.input, node.output[0]
        graph.initializer.append(numpy_helper.from_array(1 - values, f"{y}_opqn_rest"))
        nodes += [
            helper.make_node("Mul", [x, slope], [f"{y}_opqn_line"]),
            helper.make_node("Relu", [x], [f"{y}_opqn_relu"]),
            helper.make_node("Mul", [f"{y}_opqn_relu", f"{y}_opqn_rest"], [f"{y}_opqn_hinge"]),
            helper.make_node("Add", [f"{y}_opqn_hinge", f"{y}_opqn_line"], [y]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
