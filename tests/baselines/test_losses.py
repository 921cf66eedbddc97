"""Every loss equals its formula, written out again as loops over single numbers."""

import math

import numpy as np
import pytest
import torch

from opqn.baselines.cosface import CosFaceLoss, CosFaceOutput
from opqn.baselines.csq import CSQLoss, hash_centers
from opqn.baselines.dcdh import DCDHLoss
from opqn.baselines.dcwh import DCWHLoss
from opqn.baselines.ddqh import DDQHLoss
from opqn.baselines.dpah import DPAHLoss
from opqn.baselines.dpq import DPQLoss, DPQOutput
from opqn.baselines.gpq import GPQLoss, GPQOutput
from opqn.baselines.hamming import HashOutput
from opqn.baselines.methods import METHODS
from opqn.model import ModelConfig

ROWS, CLASSES, BITS, BOOKS, WORDS, DIM = 9, 5, 6, 3, 4, 5


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def labels_of_batch():
    """Some classes twice, some once, one not at all."""
    return torch.tensor([0, 0, 1, 2, 2, 2, 1, 3, 0])


def numbers(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


def cross_entropy(logits, label):
    highest = max(logits)
    return highest + math.log(sum(math.exp(z - highest) for z in logits)) - logits[label]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit(x):
    return x / math.sqrt(dot(x, x))


def sign(x):
    return int(x > 0) - int(x < 0)


def squared_distance(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def check(loss, output, labels, expected):
    """Compare the parts; then the leaves and the loss's own weights have finite gradients."""
    parts = loss(output, labels)
    np.testing.assert_allclose([part.item() for part in parts], expected, rtol=1e-9, atol=1e-9)
    parts.total.backward()
    leaves = [tensor for tensor in output if tensor.is_leaf and tensor.grad is not None]
    assert leaves
    for leaf in [*leaves, *loss.parameters()]:
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0
    # Raised to float32 weights the same numbers come out of a training.
    single = type(output)(*(tensor.detach().float() for tensor in output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss.float()(single, labels)
    np.testing.assert_allclose([part.item() for part in rounded], expected, rtol=1e-5, atol=1e-5)


def hash_output(scale=1.0):
    raw = draw(ROWS, BITS)
    return HashOutput(raw, scale * raw.tanh())


def identity_output():
    raw = draw(ROWS, BITS)
    return HashOutput(raw, raw)


def test_cosface():
    loss, labels = CosFaceLoss(CLASSES, DIM, scale=7.0, margin=0.3).double(), labels_of_batch()
    output = CosFaceOutput(draw(ROWS, DIM), torch.zeros(ROWS, BITS))
    features, prototypes = numbers(output.features, loss.prototypes)
    expected = mean(
        cross_entropy([7 * (dot(unit(x), unit(w)) - 0.3 * (c == y)) for c, w in enumerate(prototypes)], y)
        for x, y in zip(features, labels.tolist(), strict=True)
    )
    check(loss, output, labels, [expected, expected, 0, 0])


def test_csq():
    loss, labels, output = CSQLoss(CLASSES, BITS, quantization=0.2).double(), labels_of_batch(), hash_output()
    values, centers = numbers(output.values, loss.centers)
    central, error = [], []
    for h, y in zip((values + 1) / 2, labels.tolist(), strict=True):
        for p, c in zip(h, (centers[y] + 1) / 2, strict=True):
            central.append(-(c * math.log(p) + (1 - c) * math.log(1 - p)))
            error.append(math.log(math.cosh(abs(2 * p - 1) - 1)))
    check(loss, output, labels, [mean(central) + 0.2 * mean(error), mean(central), mean(error), 0])


def test_csq_has_a_gradient_where_tanh_has_none():
    raw = torch.full((1, BITS), -40.0, requires_grad=True)
    loss = CSQLoss(2, BITS, quantization=0.0)
    loss.centers[0] = 1
    loss(HashOutput(raw, raw.tanh()), torch.tensor([0])).total.backward()
    np.testing.assert_allclose(raw.grad, -2 / BITS, rtol=1e-6)


def class_wise(values, labels, centers, inverse_variance):
    return mean(
        cross_entropy([-0.5 * inverse_variance * squared_distance(r, u) for u in centers], y)
        for r, y in zip(values, labels.tolist(), strict=True)
    )


def test_dcwh():
    loss, labels = DCWHLoss(CLASSES, BITS, inverse_variance=0.7, cubic=0.3, vertex=0.05).double(), labels_of_batch()
    output = identity_output()
    values, centers = numbers(output.values, loss.centers)
    classwise = class_wise(values, labels, centers, 0.7)
    cubic = mean(sum(max(0, -1.1 - r) + max(0, r - 1.1) for r in row) for row in values)
    vertex = mean(sum((r - sign(r)) ** 2 for r in row) for row in values)
    assert cubic > 0
    check(loss, output, labels, [classwise + 0.3 * cubic + 0.05 * vertex, classwise, vertex, cubic])


def test_dcdh():
    separation_weight, regression_weight, ridge = 0.4, 0.6, 1.5
    loss = DCDHLoss(CLASSES, BITS, 0.7, separation_weight, regression_weight, ridge).double()
    labels, output = labels_of_batch(), identity_output()
    values, centers = numbers(output.values, loss.centers)
    classwise = class_wise(values, labels, centers, 0.7)
    separation = mean(
        math.log(1 + math.exp(BITS / 2 * dot(unit(centers[i]), unit(centers[j]))))
        for i in range(CLASSES)
        for j in range(CLASSES)
        if i != j
    )
    one_hot = np.eye(CLASSES)[labels]  # (N, classes)
    regressed = np.linalg.inv(one_hot.T @ one_hot + ridge * np.eye(CLASSES)) @ one_hot.T @ np.sign(values)
    codes = np.sign(one_hot @ regressed + regression_weight * values)
    assert (codes != np.sign(values)).any()
    regression = mean(squared_distance(r, b) for r, b in zip(values, codes, strict=True))
    total = classwise + separation_weight * separation + regression_weight * regression
    check(loss, output, labels, [total, classwise, regression, separation])


def test_ddqh():
    loss, labels, output = DDQHLoss(CLASSES, BITS, quantization=0.2).double(), labels_of_batch(), hash_output()
    values, weights, bias = numbers(output.values, loss.classifier.weight, loss.classifier.bias)
    prediction = mean(
        cross_entropy([dot(h, w) + b for w, b in zip(weights, bias, strict=True)], y)
        for h, y in zip(values, labels.tolist(), strict=True)
    )
    error = mean((abs(h) - 1) ** 2 for h in values.flat)
    check(loss, output, labels, [prediction + 0.2 * error, prediction, error, 0])


def test_dpah():
    loss, labels, output = DPAHLoss(CLASSES, BITS, kurtosis_weight=0.3).double(), labels_of_batch(), hash_output()
    values, centers = numbers(output.values, loss.centers)
    position = mean(
        cross_entropy([-(BITS - dot(h, np.tanh(u))) / 2 for u in centers], y)
        for h, y in zip(values, labels.tolist(), strict=True)
    )
    peaks = []
    for bit in values.T:
        fourth, second = (mean((h - mean(bit)) ** power for h in bit) for power in (4, 2))
        peaks.append(fourth / (second**2 + 1e-6) - 1)
    check(loss, output, labels, [position + 0.3 * mean(peaks), position, mean(peaks), 0])


def test_kurtosis_is_least_for_two_equal_peaks_and_finite_for_a_constant_bit():
    labels, loss = torch.arange(4), DPAHLoss(4, 2, kurtosis_weight=1.0)
    values = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    assert loss(HashOutput(values, values), labels).quantized.item() == pytest.approx(0, abs=1e-5)
    constant = torch.ones(4, 2, requires_grad=True)
    loss(HashOutput(constant, constant), labels).total.backward()
    assert torch.isfinite(constant.grad).all()


def test_dpq():
    loss = DPQLoss(CLASSES, BOOKS * DIM, central=0.3, diversity=0.7, sharpness=0.2).double()
    labels = labels_of_batch()
    output = DPQOutput(
        draw(ROWS, BOOKS, WORDS).softmax(dim=2).detach().requires_grad_(),
        draw(ROWS, BOOKS * DIM, seed=1),
        draw(ROWS, BOOKS * DIM, seed=2),
    )
    probs, soft, hard, centers = numbers(*output, loss.centers)
    weights, bias = numbers(loss.classifier.weight, loss.classifier.bias)
    classification = central = 0
    for form in (soft, hard):
        for x, y in zip(form, labels.tolist(), strict=True):
            classification += cross_entropy([dot(x, w) + b for w, b in zip(weights, bias, strict=True)], y) / ROWS
            central += 0.5 * squared_distance(x, centers[y]) / ROWS
    diversity = sum(mean(probs[:, m, k]) ** 2 for m in range(BOOKS) for k in range(WORDS))
    sharpness = mean(sum(p**2 for p in row.flat) for row in probs)
    gini = 0.7 * diversity - 0.2 * sharpness
    check(loss, output, labels, [classification + 0.3 * central + gini, classification, central, gini])


def test_gpq():
    loss, labels = GPQLoss(CLASSES, BOOKS, DIM, class_scale=3.0, classification=0.4).double(), labels_of_batch()
    output = GPQOutput(draw(ROWS, BOOKS, DIM), torch.zeros(ROWS, BOOKS, WORDS), draw(ROWS, BOOKS, DIM, seed=1))
    units, soft, prototypes = numbers(output.units, output.soft, loss.prototypes)
    pairs, classes = [], []
    for n, y in enumerate(labels.tolist()):
        likeness = [sum(dot(units[n, m], soft[j, m]) for m in range(BOOKS)) for j in range(ROWS)]
        alike = [j for j in range(ROWS) if labels[j] == y]
        pairs.append(mean(cross_entropy(likeness, j) for j in alike))
        cosines = [sum(dot(units[n, m], unit(prototypes[c, m])) for m in range(BOOKS)) for c in range(CLASSES)]
        classes.append(cross_entropy([3 * cosine for cosine in cosines], y))
    check(loss, output, labels, [mean(pairs) + 0.4 * mean(classes), mean(classes), mean(pairs), 0])


@pytest.mark.parametrize(("num_classes", "num_bits"), [(64, 32), (128, 64), (3, 4)])
def test_hadamard_centers_are_half_the_bits_apart_or_opposite(num_classes, num_bits):
    centers = hash_centers(num_classes, num_bits)
    products = centers @ centers.T
    assert set(np.unique(centers)) == {-1, 1}
    assert set(np.unique(products)) <= {-num_bits, 0, num_bits}
    assert (np.diagonal(products) == num_bits).all()
    assert len(np.unique(centers, axis=0)) == num_classes


@pytest.mark.parametrize("num_bits", [16, 24, 36, 48, 64])
def test_drawn_centers_are_balanced_and_distinct(num_bits):
    centers = hash_centers(300, num_bits, seed=1)
    assert centers.shape == (300, num_bits)
    assert (centers.sum(axis=1) == 0).all()
    assert len(np.unique(centers, axis=0)) == 300
    np.testing.assert_array_equal(centers, hash_centers(300, num_bits, seed=1))
    assert (centers != hash_centers(300, num_bits, seed=2)).any()


def test_more_classes_than_balanced_words_share_centers():
    centers = hash_centers(20, 4)
    assert centers.shape == (20, 4)
    assert len(np.unique(centers, axis=0)) == 6  # 4 choose 2


@pytest.mark.parametrize("name", METHODS)
def test_a_person_can_be_alone_in_a_batch_and_a_batch_of_two_trains(name):
    config = ModelConfig(backbone="resnet20-32-narrow", num_books=2, num_words=16, book_dim=16)
    torch.manual_seed(0)
    head, loss = METHODS[name]().build_head(config), METHODS[name]().build_loss(config, 3)
    features = torch.randn(2, config.feature_dim, requires_grad=True)
    loss(head(features), torch.tensor([2, 0])).total.backward()
    for tensor in [features, *head.parameters(), *loss.parameters()]:
        assert torch.isfinite(tensor.grad).all()
