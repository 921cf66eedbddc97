"""The loss equals the paper's formulas, written out as loops in float64, and so do its gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

import opqn.losses
from opqn import OPQN, ConfigError, ModelConfig, OPQNLoss, OrthonormalQuantizer
from opqn.losses import assignment_entropy
from opqn.quantizer import QuantizerOutput


def make(rows=7, num_classes=5, shape=(3, 6, 4), dtype=torch.float64, seed=0, **settings):
    """A loss, what a head might have made of a batch (as leaves), and labels."""
    torch.manual_seed(seed)
    num_books, book_dim, num_words = shape
    loss = OPQNLoss(num_classes, num_books, book_dim, **settings).to(dtype)
    output = QuantizerOutput(
        torch.randn(rows, num_books, book_dim, dtype=dtype).requires_grad_(),
        torch.randn(rows, num_books, num_words, dtype=dtype).softmax(dim=2).requires_grad_(),
        torch.randn(rows, num_books, book_dim, dtype=dtype).requires_grad_(),
    )
    return loss, output, torch.randint(num_classes, (rows,))


def leaves(loss, output):
    return [output.features, output.soft, output.probs, loss.prototypes]


def gradients(total, loss, output):
    return torch.autograd.grad(total, leaves(loss, output), retain_graph=True)


def open_formula(loss, output, labels):
    """Total loss with the whole logits and autograd throughout."""
    cross_entropies = [
        torch.nn.functional.cross_entropy(loss.logits(vectors, labels).flatten(0, 1), labels.repeat_interleave(books))
        for vectors, books in ((output.features, output.features.shape[1]), (output.soft, output.soft.shape[1]))
    ]
    entropy = -(output.probs * output.probs.log()).sum(dim=2).mean()
    share = loss.original_share
    return share * cross_entropies[0] + (1 - share) * cross_entropies[1] + loss.mu * entropy


def loop_logits(loss, vectors, labels):
    """Margin logits, one number at a time, float64."""
    prototypes = loss.prototypes.detach().double().numpy()
    vectors = vectors.detach().double().numpy()
    logits = np.zeros((len(vectors), len(prototypes), prototypes.shape[1]))
    for n, m, c in np.ndindex(*logits.shape):
        dot = sum(x * w for x, w in zip(vectors[n, m], prototypes[m, c], strict=True))
        lengths = math.sqrt(sum(x * x for x in vectors[n, m])) * math.sqrt(sum(w * w for w in prototypes[m, c]))
        logits[n, m, c] = loss.scale * (dot / lengths - (loss.margin if c == labels[n] else 0))
    return logits


def loop_cross_entropy(logits, labels):
    losses = []
    for n, m in np.ndindex(*logits.shape[:2]):
        highest = max(logits[n, m])
        losses.append(highest + math.log(sum(math.exp(z - highest) for z in logits[n, m])) - logits[n, m, labels[n]])
    return sum(losses) / len(losses)


def loop_entropy(probs):
    probs = probs.detach().double().numpy()
    return -sum(p * math.log(p) for p in probs.flat) / (probs.shape[0] * probs.shape[1])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6),
    num_classes=st.integers(2, 7),
    num_books=st.integers(1, 4),
    book_dim=st.integers(2, 6),
    scale=st.sampled_from([1.0, 20.0, 40.0]),
    margin=st.sampled_from([0.0, 0.4, 0.5]),
    mu=st.sampled_from([0.0, 0.1, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_every_part_equals_the_loop(rows, num_classes, num_books, book_dim, scale, margin, mu, dtype, seed):
    loss, output, labels = make(
        rows, num_classes, (num_books, book_dim, 4), dtype, seed, scale=scale, margin=margin, mu=mu
    )
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    logits = [loop_logits(loss, vectors, labels) for vectors in (output.features, output.soft)]
    np.testing.assert_allclose(loss.logits(output.features, labels).detach(), logits[0], **tolerance)
    original, quantized = (loop_cross_entropy(values, labels) for values in logits)
    entropy = loop_entropy(output.probs)
    parts = loss(output, labels)
    assert {part.dtype for part in parts} == {dtype}
    for part, expected in zip(
        parts, [0.5 * (original + quantized) + mu * entropy, original, quantized, entropy], strict=True
    ):
        np.testing.assert_allclose(part.item(), expected, **tolerance)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": 40.0, "margin": 0.4, "mu": 0.0},
        {"scale": 1.0, "margin": 0.0},
        {"original_share": 0.0},
        {"original_share": 0.3},
        {"original_share": 1.0},
    ],
)
def test_gradients_equal_those_of_the_open_formula(settings):
    loss, output, labels = make(rows=9, **settings)
    ours = gradients(loss(output, labels).total, loss, output)
    expected = gradients(open_formula(loss, output, labels), loss, output)
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("share", "part"), [(1.0, "original"), (0.0, "quantized")])
def test_a_share_of_one_or_nothing_leaves_a_branch_out(share, part):
    loss, output, labels = make(original_share=share, mu=0.0)
    parts = loss(output, labels)
    torch.testing.assert_close(parts.total, getattr(parts, part), rtol=1e-13, atol=0)
    of_original, of_quantized = torch.autograd.grad(parts.total, [output.features, output.soft])
    left_out = of_quantized if part == "original" else of_original
    assert not left_out.any()


def test_gradients_equal_finite_differences():
    loss, output, labels = make()
    ours = gradients(loss(output, labels).total, loss, output)
    step = 1e-6
    for leaf, gradient in zip(leaves(loss, output), ours, strict=True):
        for position in np.ndindex(*leaf.shape):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    leaf[position] += sign * step
                    values.append(loss(output, labels).total.item())
                    leaf[position] -= sign * step
            difference = (values[0] - values[1]) / (2 * step)
            np.testing.assert_allclose(gradient[position].item(), difference, rtol=1e-6, atol=1e-8)


def test_float32_gradients_equal_those_of_the_open_formula_in_float64():
    loss, output, labels = make(rows=64, num_classes=50, shape=(4, 16, 8), dtype=torch.float32)
    loss64, output64, _ = make(rows=64, num_classes=50, shape=(4, 16, 8))
    for leaf64, leaf in zip(leaves(loss64, output64), leaves(loss, output), strict=True):
        leaf64.data.copy_(leaf.data)
    ours = gradients(loss(output, labels).total, loss, output)
    expected = gradients(open_formula(loss64, output64, labels), loss64, output64)
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("rows_at_once", [1, 2, 5, 7, 13, 14, 100])
@pytest.mark.parametrize("original_share", [0.5, 0.2])
def test_chunks_of_any_size_give_the_same_loss_and_gradients(rows_at_once, original_share, monkeypatch):
    loss, output, labels = make(rows=7, original_share=original_share)  # two branches: 14 rows
    whole = loss(output, labels)
    expected = gradients(whole.total, loss, output)
    monkeypatch.setattr(opqn.losses, "LOGITS_AT_ONCE", rows_at_once * 5)
    monkeypatch.setattr(opqn.losses, "LEAST_ROWS", 1)
    parts = loss(output, labels)
    for mine, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-13, atol=0)
    for mine, other in zip(gradients(parts.total, loss, output), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-14)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_the_logits_never_exist_as_a_whole(monkeypatch):
    monkeypatch.setattr(opqn.losses, "LOGITS_AT_ONCE", 1000)
    monkeypatch.setattr(opqn.losses, "LEAST_ROWS", 1)
    loss, output, labels = make(rows=40, num_classes=500, shape=(2, 4, 4))
    with LargestTensor() as largest:
        loss(output, labels).total.backward()
    # The gradient of the prototypes is the largest; the logits of the two branches would be 20 times that.
    assert largest.numel == loss.prototypes.numel()
    assert 20 * largest.numel == 2 * 40 * 2 * 500


def test_without_gradients_the_values_are_the_same():
    loss, output, labels = make()
    expected = loss(output, labels)
    with torch.no_grad():
        parts = loss(output, labels)
    for mine, other in zip(parts, expected, strict=True):
        assert torch.equal(mine, other)
        assert not mine.requires_grad


def test_a_weighted_total_has_weighted_gradients():
    loss, output, labels = make()
    plain = gradients(loss(output, labels).total, loss, output)
    weighted = gradients(3 * loss(output, labels).total, loss, output)
    for one, three in zip(plain, weighted, strict=True):
        torch.testing.assert_close(3 * one, three)


def test_gradients_can_be_taken_twice_and_accumulate():
    loss, output, labels = make()
    total = loss(output, labels).total
    total.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in leaves(loss, output)]
    for leaf in leaves(loss, output):
        leaf.grad.zero_()
    total.backward(retain_graph=True)
    total.backward()
    for leaf, gradient in zip(leaves(loss, output), once, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient)


def test_the_classification_gradient_reaches_the_projection_through_both_branches():
    torch.manual_seed(0)
    quantizer = OrthonormalQuantizer(3, 6, 4).double()
    loss = OPQNLoss(5, 3, 6).double()
    features = torch.randn(7, 18, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, (7,))
    inputs = [features, quantizer.projection, loss.prototypes]
    ours = torch.autograd.grad(loss(quantizer(features), labels).total, inputs)
    expected = torch.autograd.grad(open_formula(loss, quantizer(features), labels), inputs)
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_assignments_that_underflow_give_finite_gradients():
    torch.manual_seed(0)
    quantizer, loss = OrthonormalQuantizer(2, 8, 8), OPQNLoss(5, 2, 8)
    features = (1e4 * torch.randn(6, 16)).requires_grad_()
    output = quantizer(features)
    assert (output.probs == 0).any()
    parts = loss(output, torch.arange(6) % 5)
    parts.total.backward()
    assert all(torch.isfinite(part) for part in parts)
    for leaf in (features, quantizer.projection, loss.prototypes):
        assert torch.isfinite(leaf.grad).all()


def test_entropy_is_zero_when_certain_and_log_k_when_not():
    certain = torch.eye(8).expand(3, 8, 8)
    assert assignment_entropy(certain).item() == pytest.approx(0, abs=1e-6)
    assert assignment_entropy(torch.full((3, 2, 8), 1 / 8)).item() == pytest.approx(math.log(8))


def test_a_zero_vector_is_equally_near_to_every_class():
    loss, output, labels = make(scale=20.0, margin=0.5)
    with torch.no_grad():
        output.features.zero_()
    parts = loss(output, labels)
    # The margin alone tells the classes apart: four at logit 0, the true one at -10.
    assert parts.original.item() == pytest.approx(10 + math.log(4 + math.exp(-10)))
    assert all(torch.isfinite(gradient).all() for gradient in gradients(parts.total, loss, output))


def test_a_zero_prototype_has_the_cosine_zero_and_finite_gradients():
    loss, output, labels = make()
    with torch.no_grad():
        loss.prototypes[:, 2] = 0
    parts = loss(output, labels)
    expected = loop_cross_entropy(loss.logits(output.features, labels).detach().numpy(), labels)
    assert parts.original.item() == pytest.approx(expected)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(parts.total, loss, output))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_a_huge_scale_the_loss_is_the_gap_to_the_best_wrong_class(dtype):
    scale = 1e4
    loss, output, labels = make(dtype=dtype, scale=scale)
    logits = loss.logits(output.features, labels)
    true_logits = logits.gather(2, labels.view(-1, 1, 1).expand(-1, 3, 1))
    gap = (logits.amax(dim=2, keepdim=True) - true_logits).mean().item()
    parts = loss(output, labels)
    assert parts.original.item() == pytest.approx(gap, rel=1e-5)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(parts.total, loss, output))


def test_the_loss_depends_on_directions_only():
    loss, output, labels = make()
    with torch.no_grad():
        longer = QuantizerOutput(7 * output.features, output.probs, 0.1 * output.soft)
        torch.testing.assert_close(loss(longer, labels).total, loss(output, labels).total)


def test_autocast_and_half_precision_features_give_the_float32_loss():
    loss, output, labels = make(dtype=torch.float32)
    halves = QuantizerOutput(*(tensor.detach().bfloat16().requires_grad_() for tensor in output))
    rounded = QuantizerOutput(*(tensor.detach().float() for tensor in halves))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = loss(halves, labels)
    for mine, other in zip(parts, loss(rounded, labels), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, other)
    parts.total.backward()
    assert halves.features.grad.dtype == torch.bfloat16
    assert loss.prototypes.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (torch.zeros(6, dtype=torch.int64), r"must be \(7,\) int64, not \(6,\)"),
        (torch.zeros(7, 1, dtype=torch.int64), r"must be \(7,\) int64, not \(7, 1\)"),
        (torch.zeros(7, dtype=torch.int32), r"must be \(7,\) int64, not \(7,\) torch.int32"),
        (torch.zeros(7), r"must be \(7,\) int64"),
        (torch.arange(7), r"labels span 0\.\.6; this loss has the classes 0\.\.4"),
        (torch.full((7,), -1), r"labels span -1\.\.-1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, complaint):
    loss, output, _ = make()
    with pytest.raises(ConfigError, match=complaint):
        loss(output, labels)


def test_features_of_another_shape_than_the_prototypes_are_refused():
    loss, output, labels = make()
    for wrong in (
        QuantizerOutput(*(tensor[:, :2] for tensor in output)),
        QuantizerOutput(output.features[:, :, :5], output.probs, output.soft[:, :, :5]),
    ):
        with pytest.raises(ConfigError, match=r"this loss needs \(N, 3, 6\)"):
            loss(wrong, labels)


def test_an_empty_batch_is_refused():
    loss, output, labels = make()
    with pytest.raises(ConfigError, match="N > 0"):
        loss(QuantizerOutput(*(tensor[:0] for tensor in output)), labels[:0])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_classes": 1}, "at least 2 people, not 1"),
        ({"scale": 0.0}, r"scale \(0.0\) must be positive"),
        ({"scale": math.nan}, "must be positive"),
        ({"margin": -0.1}, r"margin \(-0.1\)"),
        ({"mu": -1.0}, r"mu \(-1.0\)"),
        ({"original_share": 1.1}, "original_share is 1.1"),
        ({"original_share": math.nan}, "original_share is nan"),
    ],
)
def test_settings_that_make_no_loss_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        OPQNLoss(**{"num_classes": 3, "num_books": 2, "book_dim": 4} | settings)


def test_a_saved_model_has_no_prototypes(tmp_path):
    model = OPQN(ModelConfig(backbone="resnet20-32-narrow", num_books=2, num_words=4, book_dim=4))
    loss = OPQNLoss(37, 2, 4)
    features = torch.randn(5, 8)
    loss(model.quantizer(features), torch.arange(5)).total.backward()
    model.save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    with safe_open(weights, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert (2, 4, 4) in shapes.values()
    assert not any("prototypes" in name or 37 in shape for name, shape in shapes.items())
