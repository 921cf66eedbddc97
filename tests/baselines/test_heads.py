"""Heads: every length has codes and tables of its shape, and quantizers do what their formulas say."""

import numpy as np
import pytest
import torch

from opqn.baselines.cosface import CosFaceHead
from opqn.baselines.dpq import DPQHead
from opqn.baselines.gpq import GPQHead
from opqn.baselines.l2q import EuclideanQuantizer
from opqn.baselines.methods import METHODS
from opqn.evaluation import evaluate
from opqn.index import score
from opqn.model import ModelConfig

SHAPES = {16: (2, 256, 256), 24: (4, 64, 64), 36: (6, 64, 64), 48: (8, 64, 64), 64: (8, 256, 256)}
BINARY = {"cosface", "csq", "dcdh", "dcwh", "ddqh", "dpah"}
ROWS, BOOKS, DIM, WORDS = 7, 3, 5, 4


@pytest.mark.parametrize("num_bits", SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_codes_of_every_length(name, num_bits):
    num_books, num_words, book_dim = SHAPES[num_bits]
    config = ModelConfig(num_books=num_books, num_words=num_words, book_dim=book_dim)
    torch.manual_seed(0)
    head = METHODS[name]().build_head(config).eval()
    features = torch.randn(6, config.feature_dim)
    codes, tables, probs = head.encode(features), head.lookup_tables(features), head(features).probs
    shape = (-(-num_bits // 8), 256) if name in BINARY else (num_books, num_words)
    assert (head.num_books, head.num_words) == shape
    assert (codes.shape, codes.dtype) == ((6, shape[0]), torch.uint8)
    assert (tables.shape, tables.dtype) == ((6, *shape), torch.float32)
    assert tables.is_contiguous()
    assert torch.equal(probs.argmax(dim=2), codes.long())
    assert torch.equal(head.encode(features), codes)
    assert torch.equal(head.lookup_tables(features, 3.0), tables)
    # The nearest item to a query is itself, or one with the same code; for DPQ soft and hard forms may differ.
    if name != "dpq":
        scores = score(tables.numpy(), codes.numpy())
        assert (scores.diagonal() == scores.max(axis=1)).all()
    report = evaluate(codes.numpy(), np.arange(6), tables.numpy(), np.arange(6))
    assert 0 < report.mean_average_precision <= 1


def setup(head):
    features = torch.randn(ROWS, BOOKS * DIM, generator=torch.Generator().manual_seed(0))
    books = head.codebooks.detach().double().numpy()  # (M, d, K)
    return features, features.view(ROWS, BOOKS, DIM).double().numpy(), books


def softmax(logits):
    weights = np.exp(logits - np.max(logits))
    return weights / weights.sum()


def test_l2q_quantizes_by_distance():
    head = EuclideanQuantizer(BOOKS, DIM, WORDS)
    features, parts, books = setup(head)
    output, codes, tables = head(features), head.encode(features), head.lookup_tables(features)
    for n, m in np.ndindex(ROWS, BOOKS):
        distances = np.array([((parts[n, m] - books[m, :, k]) ** 2).sum() for k in range(WORDS)])
        probs = softmax(-distances)
        np.testing.assert_allclose(tables[n, m], -distances, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(output.probs[n, m].detach(), probs, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(output.soft[n, m].detach(), books[m] @ probs, rtol=1e-4, atol=1e-5)
        assert codes[n, m] == distances.argmin()
    assert torch.equal(output.features, features.view(ROWS, BOOKS, DIM))


def test_gpq_quantizes_by_cosine():
    head = GPQHead(BOOKS, DIM, WORDS, assignment_scale=6.0)
    features, parts, books = setup(head)
    output, codes, tables = head(features), head.encode(features), head.lookup_tables(features)
    for n, m in np.ndindex(ROWS, BOOKS):
        unit = parts[n, m] / np.linalg.norm(parts[n, m])
        words = books[m] / np.linalg.norm(books[m], axis=0)
        probs = softmax(6 * (unit @ words))
        np.testing.assert_allclose(output.units[n, m], unit, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(tables[n, m], unit @ words, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(output.probs[n, m].detach(), probs, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(output.soft[n, m].detach(), words @ probs, rtol=1e-4, atol=1e-5)
        assert codes[n, m] == (unit @ words).argmax()


def test_dpq_has_a_soft_form_a_hard_one_and_tables_of_the_soft():
    head = DPQHead(BOOKS, DIM, WORDS)
    features, parts, books = setup(head)
    output, codes, tables = head(features), head.encode(features), head.lookup_tables(features)
    projection = head.projection.detach().double().numpy()
    soft, hard = (form.detach().view(ROWS, BOOKS, DIM) for form in (output.soft, output.hard))
    for n, m in np.ndindex(ROWS, BOOKS):
        probs = softmax(parts[n, m] @ projection[m])
        np.testing.assert_allclose(output.probs[n, m].detach(), probs, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(soft[n, m], books[m] @ probs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(hard[n, m], books[m][:, probs.argmax()], rtol=1e-4, atol=1e-5)
        distances = [((books[m] @ probs - books[m][:, k]) ** 2).sum() for k in range(WORDS)]
        np.testing.assert_allclose(tables[n, m], np.negative(distances), rtol=1e-4, atol=1e-5)
        assert codes[n, m] == probs.argmax()


def test_gradient_of_dpqs_hard_form_is_that_of_the_soft_one():
    head = DPQHead(BOOKS, DIM, WORDS)
    features, _, _ = setup(head)
    output = head(features)
    weights = torch.arange(BOOKS * DIM)
    soft, hard = (
        torch.autograd.grad((form * weights).sum(), head.projection, retain_graph=True)[0]
        for form in (output.soft, output.hard)
    )
    torch.testing.assert_close(soft, hard)


def test_first_codewords_of_l2q_and_directions_of_cosface_are_orthonormal():
    books = EuclideanQuantizer(BOOKS, DIM, WORDS).codebooks.detach()
    torch.testing.assert_close(books.transpose(1, 2) @ books, torch.eye(WORDS).expand(BOOKS, -1, -1))
    directions = CosFaceHead(30, 20).directions
    torch.testing.assert_close(directions.T @ directions, torch.eye(20))


def test_nothing_of_cosface_is_trained_through_its_codes():
    head = CosFaceHead(30, 20)
    features = torch.randn(4, 30, requires_grad=True)
    output = head(features)
    assert output.features is features
    assert not output.projected.requires_grad
    assert not list(head.parameters())
    assert torch.equal(head.encode(features), head.encode(7 * features))
