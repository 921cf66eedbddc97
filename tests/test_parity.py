"""The same inputs give what the authors' implementation gave for them (float32, CPU)."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from opqn import OPQNLoss, OrthonormalQuantizer, orthonormal_codebooks

ROOT = Path(__file__).parents[1]
PARITY = Path(os.environ.get("OPQN_SHARED") or ROOT.parent / "shared") / "parity"
FILES = ["opqn_M4_K64_D512.npz", "opqn_M6_K64_D516.npz", "opqn_M8_K64_D512.npz"]
SMALL = Path(__file__).parent / "data_files" / "parity_small.npz"
CLOSE = {"rtol": 0, "atol": 1e-5}


class Case:
    """A file of the authors' figures, with a head and a loss that have its weights."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as file:
            self.figures = dict(file)
        num_books, book_dim, num_words = self["mlp"].shape
        self.quantizer = OrthonormalQuantizer(num_books, book_dim, num_words)
        settings = {name: float(self[name]) for name in ("scale", "margin", "mu")}
        self.loss = OPQNLoss(int(self["num_classes"]), num_books, book_dim, **settings)
        with torch.no_grad():
            self.quantizer.projection.copy_(self.tensor("mlp"))
            self.loss.prototypes.copy_(self.tensor("weight"))
        self.features = self.tensor("features").requires_grad_()
        self.labels = self.tensor("labels")

    def __getitem__(self, name):
        return self.figures[name]

    def tensor(self, name):
        return torch.from_numpy(self.figures[name])


@pytest.fixture(params=FILES)
def case(request):
    path = PARITY / request.param
    if not path.is_file():
        pytest.skip(f"no {path}: the authors' figures are not here; set OPQN_SHARED to the folder that holds parity/")
    return Case(path)


def test_codebooks_are_the_authors(case):
    books = orthonormal_codebooks(*case["codebooks"].shape)
    np.testing.assert_allclose(books, case["codebooks"], **CLOSE)


def test_assignments_and_logits_are_the_authors(case):
    output = case.quantizer(case.features)
    np.testing.assert_allclose(output.probs.detach(), case["probs"], **CLOSE)
    for vectors, name in ((output.features, "logits_original"), (output.soft, "logits_quantized")):
        np.testing.assert_allclose(case.loss.logits(vectors, case.labels).detach(), case[name], rtol=1e-6, atol=1e-5)


def test_losses_are_the_authors(case):
    parts = case.loss(case.quantizer(case.features), case.labels)
    assert parts.total.item() == pytest.approx(float(case["loss"]), rel=1e-6, abs=1e-5)
    classification = 0.5 * (parts.original + parts.quantized).item()
    assert classification == pytest.approx(float(case["loss_classification"]), rel=1e-6, abs=1e-5)
    assert parts.entropy.item() == pytest.approx(float(case["loss_entropy"]), rel=1e-6, abs=1e-5)


def test_gradients_are_the_authors(case):
    case.loss(case.quantizer(case.features), case.labels).total.backward()
    for leaf, name in (
        (case.features, "grad_features"),
        (case.loss.prototypes, "grad_weight"),
        (case.quantizer.projection, "grad_mlp"),
    ):
        gradient, expected = leaf.grad.numpy(), case[name]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert np.linalg.norm(gradient - expected) <= 1e-4 * np.linalg.norm(expected)


def test_codes_are_the_authors_one_by_one(case):
    codes = case.quantizer.encode(case.tensor("gallery_features"))
    np.testing.assert_array_equal(codes, case["gallery_codes"])


def test_lookup_tables_are_the_authors(case):
    tables = case.quantizer.lookup_tables(case.tensor("query_features"))
    np.testing.assert_allclose(tables, case["query_tables"], **CLOSE)


def test_one_book_of_the_authors_figures_is_reproduced():
    """Runs everywhere: ``parity_small.npz`` is a cut from the files above, one book of M = 8, K = d = 64."""
    with np.load(SMALL, allow_pickle=False) as file:
        figures = dict(file)
    book = int(figures["book"])
    quantizer = OrthonormalQuantizer(8, 64, 64)
    loss = OPQNLoss(8, 8, 64, scale=float(figures["scale"]), margin=float(figures["margin"]))

    def widen(part):
        """Put the (N, 64) sub-vectors of the book where they stand in (N, 512) features."""
        features = torch.zeros(len(part), 8, 64)
        features[:, book] = torch.from_numpy(part)
        return features.flatten(1)

    with torch.no_grad():
        quantizer.projection[book] = torch.from_numpy(figures["projection"])
        loss.prototypes[:, :] = torch.from_numpy(figures["prototypes"])
        output = quantizer(widen(figures["features"]))
        labels = torch.from_numpy(figures["labels"])
        original, quantized = (loss.logits(vectors, labels)[:, book] for vectors in (output.features, output.soft))
    np.testing.assert_allclose(quantizer.codebooks[book, :16, :8], figures["codewords"], **CLOSE)
    np.testing.assert_allclose(output.probs[:, book], figures["probs"], **CLOSE)
    np.testing.assert_allclose(original, figures["logits_original"], **CLOSE)
    np.testing.assert_allclose(quantized, figures["logits_quantized"], **CLOSE)
    tables = quantizer.lookup_tables(widen(figures["query_features"]))[:, book]
    np.testing.assert_allclose(tables, figures["query_tables"], **CLOSE)
    codes = quantizer.encode(widen(figures["gallery_features"]))[:, book]
    np.testing.assert_array_equal(codes, figures["gallery_codes"])
