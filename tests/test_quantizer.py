"""The head equals the paper's formulas, written out as loops over samples, books and words in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn import ConfigError, OrthonormalQuantizer
from opqn.quantizer import RefittedQuantizer
from opqn.refitting import fit_head


class LoopQuantizer:
    """The head in plain Python: one number at a time, float64."""

    def __init__(self, quantizer):
        self.codebooks = quantizer.codebooks.detach().double().numpy()
        self.projection = quantizer.projection.detach().double().numpy()
        self.num_books, self.book_dim, self.num_words = self.projection.shape

    def part(self, row, m):
        return [float(row[m * self.book_dim + j]) for j in range(self.book_dim)]

    def logits(self, part, m):
        return [sum(part[j] * self.projection[m, j, k] for j in range(self.book_dim)) for k in range(self.num_words)]

    def softmax(self, logits):
        exponentials = [math.exp(logit - max(logits)) for logit in logits]
        return [value / sum(exponentials) for value in exponentials]

    def probs(self, row, m):
        return self.softmax(self.logits(self.part(row, m), m))

    def soft(self, probs, m):
        return [sum(self.codebooks[m, j, k] * probs[k] for k in range(self.num_words)) for j in range(self.book_dim)]

    def query_soft(self, row, m, temperature):
        part = self.part(row, m)
        length = math.sqrt(sum(value * value for value in part))
        return self.soft(self.softmax(self.logits([temperature * value / length for value in part], m)), m)

    def table(self, row, m, temperature):
        """Inner products of the query's soft-quantized part with every codeword."""
        soft = self.query_soft(row, m, temperature)
        return [sum(soft[j] * self.codebooks[m, j, k] for j in range(self.book_dim)) for k in range(self.num_words)]

    def over_all(self, rows, function):
        return np.array([[function(row, m) for m in range(self.num_books)] for row in rows])


@st.composite
def heads(draw):
    """A head with random shape and weights, and features for it."""
    num_words = draw(st.sampled_from([2, 4, 8]))
    num_books = draw(st.integers(1, 4))
    book_dim = draw(st.integers(num_words, num_words + 5))
    kind = draw(st.sampled_from(["dct", "random", "learned"]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    quantizer = OrthonormalQuantizer(num_books, book_dim, num_words, kind, draw(st.sampled_from([0.5, 1.0, 12.0])))
    if kind == "learned":
        with torch.no_grad():
            quantizer.codebooks += 0.5 * torch.randn_like(quantizer.codebooks)
    return quantizer, draw(st.sampled_from([0.1, 1.0, 10.0])) * torch.randn(
        draw(st.integers(1, 5)), num_books * book_dim
    )


def make(kind="dct", shape=(3, 8, 4), rows=16, **settings):
    torch.manual_seed(0)
    return OrthonormalQuantizer(*shape, kind, **settings), torch.randn(rows, shape[0] * shape[1])


@settings(max_examples=40, deadline=None)
@given(heads())
def test_assignments_and_soft_features_equal_the_loop(head):
    quantizer, features = head
    oracle = LoopQuantizer(quantizer)
    output = quantizer(features)
    probs = oracle.over_all(features, oracle.probs)
    soft = oracle.over_all(features, lambda row, m: oracle.soft(oracle.probs(row, m), m))
    np.testing.assert_allclose(output.features, oracle.over_all(features, oracle.part), rtol=0)
    np.testing.assert_allclose(output.probs.detach(), probs, atol=1e-5)
    np.testing.assert_allclose(output.probs.detach().sum(dim=2), 1, atol=1e-6)
    np.testing.assert_allclose(output.soft.detach(), soft, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(heads())
def test_a_code_is_the_word_of_the_largest_logit(head):
    quantizer, features = head
    oracle = LoopQuantizer(quantizer)
    codes = quantizer.encode(features)
    assert codes.dtype == torch.uint8
    logits = oracle.over_all(features, lambda row, m: oracle.logits(oracle.part(row, m), m))  # (N, M, K)
    chosen = np.take_along_axis(logits, codes.numpy()[:, :, None].astype(np.int64), axis=2)[:, :, 0]
    # Two logits closer than float32 can tell may change places.
    np.testing.assert_allclose(chosen, logits.max(axis=2), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(heads())
def test_a_table_holds_the_inner_products_with_the_codewords(head):
    quantizer, features = head
    oracle = LoopQuantizer(quantizer)
    tables = quantizer.lookup_tables(features)
    assert tables.dtype == torch.float32
    assert tables.is_contiguous()
    expected = oracle.over_all(features, lambda row, m: oracle.table(row, m, quantizer.query_temperature))
    np.testing.assert_allclose(tables, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["dct", "hadamard", "random"])
def test_with_orthonormal_codewords_the_soft_assignment_is_the_table(kind):
    quantizer, features = make(kind)
    output = quantizer(features)
    inner_products = torch.einsum("nmd,mdk->nmk", output.soft, quantizer.codebooks)
    torch.testing.assert_close(inner_products, output.probs, rtol=0, atol=1e-6)


def test_the_table_of_a_normalised_query_is_its_training_assignment():
    quantizer, features = make()
    units = torch.nn.functional.normalize(features.view(16, 3, 8), dim=2).flatten(1)
    torch.testing.assert_close(quantizer.lookup_tables(features), quantizer(units).probs.detach())


def test_codes_do_not_depend_on_the_length_of_the_features():
    quantizer, features = make()
    for factor in (1e-3, 0.5, 4.0, 1e3):
        torch.testing.assert_close(quantizer.encode(factor * features), quantizer.encode(features))


def test_a_code_is_the_largest_entry_of_its_own_table():
    quantizer, features = make()
    assert torch.equal(quantizer.lookup_tables(features).argmax(dim=2).to(torch.uint8), quantizer.encode(features))


def test_of_equal_words_the_first_is_the_code():
    quantizer, features = make()
    with torch.no_grad():
        quantizer.projection[:, :, 1] = quantizer.projection[:, :, 3]
    assert not (quantizer.encode(features) == 3).any()
    assert (quantizer.encode(features) == 1).any()
    assert not quantizer.encode(torch.zeros_like(features)).any()


def test_a_higher_temperature_gives_a_peakier_table_and_the_same_best_word():
    quantizer, features = make()
    tables = [quantizer.lookup_tables(features, temperature) for temperature in (0.1, 1.0, 5.0, 50.0)]
    peaks = torch.stack([table.amax(dim=2) for table in tables])
    assert (peaks.diff(dim=0) > 0).all()
    for table in tables:
        assert torch.equal(table.argmax(dim=2), tables[0].argmax(dim=2))


def test_the_temperature_of_the_head_is_the_default_of_its_tables():
    quantizer, features = make(query_temperature=7.0)
    assert torch.equal(quantizer.lookup_tables(features), quantizer.lookup_tables(features, 7.0))
    assert not torch.equal(quantizer.lookup_tables(features), quantizer.lookup_tables(features, 1.0))


def test_a_zero_query_is_equally_near_to_every_word():
    quantizer, _ = make()
    torch.testing.assert_close(quantizer.lookup_tables(torch.zeros(2, 24)), torch.full((2, 3, 4), 0.25))


@pytest.mark.parametrize("kind", ["dct", "learned"])
def test_the_state_holds_the_codebooks_and_restores_the_head(kind):
    quantizer, features = make(kind)
    state = quantizer.state_dict()
    assert set(state) == {"codebooks", "projection"}
    other = OrthonormalQuantizer(3, 8, 4, kind, seed=5)
    other.load_state_dict(state)
    assert torch.equal(other.lookup_tables(features), quantizer.lookup_tables(features))


@pytest.mark.parametrize(("kind", "trained"), [("dct", {"projection"}), ("learned", {"projection", "codebooks"})])
def test_only_learned_codebooks_are_trained(kind, trained):
    quantizer, features = make(kind)
    quantizer(features).soft.square().sum().backward()
    assert {name for name, value in quantizer.named_parameters() if value.grad.abs().max() > 0} == trained


@pytest.mark.parametrize("shape", [(4, 23), (4, 25), (24,), (4, 3, 8)])
def test_features_of_another_length_are_refused(shape):
    quantizer, _ = make()
    for call in (quantizer, quantizer.encode, quantizer.lookup_tables):
        with pytest.raises(ConfigError, match=r"expected \(N, 24\)"):
            call(torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ConfigError, match=r"query_temperature is .*; it must be positive"):
        OrthonormalQuantizer(3, 8, 4, query_temperature=temperature)


def test_an_empty_batch_has_no_codes_and_no_tables():
    quantizer, features = make()
    assert quantizer.encode(features[:0]).shape == (0, 3)
    assert quantizer.lookup_tables(features[:0]).shape == (0, 3, 4)


def test_autocast_changes_neither_assignments_nor_codes_nor_tables():
    quantizer, features = make(rows=2000)
    plain = quantizer(features), quantizer.encode(features), quantizer.lookup_tables(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (features @ features.T).dtype == torch.bfloat16
        cast = quantizer(features), quantizer.encode(features), quantizer.lookup_tables(features)
    assert cast[0].probs.dtype == cast[0].soft.dtype == torch.float32
    for before, after in zip([*plain[0], *plain[1:]], [*cast[0], *cast[1:]], strict=True):
        assert torch.equal(before, after)


def test_half_precision_features_are_raised_to_float32():
    quantizer, features = make()
    rounded = features.bfloat16()
    assert torch.equal(quantizer(rounded).probs, quantizer(rounded.float()).probs)
    assert torch.equal(quantizer.encode(rounded), quantizer.encode(rounded.float()))


class LoopRefit:
    """The refitted head in plain Python: one number at a time, float64."""

    def __init__(self, quantizer):
        self.code_weights = quantizer.code_weights.double().numpy()
        self.table_weights = quantizer.table_weights.double().numpy()
        self.codebooks = quantizer.codebooks.detach().double().numpy()
        self.temperature = quantizer.query_temperature
        self.num_books, self.book_dim, self.num_words = self.codebooks.shape

    def logits(self, weights, row, m):
        length = math.sqrt(sum(float(value) ** 2 for value in row))
        return [
            sum(float(row[i]) / length * weights[m, i, k] for i in range(len(row))) + weights[m, -1, k]
            for k in range(self.num_words)
        ]

    def log_softmax(self, logits):
        scaled = [self.temperature * logit for logit in logits]
        log_sum = max(scaled) + math.log(sum(math.exp(value - max(scaled)) for value in scaled))
        return [value - log_sum for value in scaled]

    def code_logits(self, row, m):
        return self.logits(self.code_weights, row, m)

    def table(self, row, m):
        return self.log_softmax(self.logits(self.table_weights, row, m))

    def probs(self, row, m):
        return [math.exp(value) for value in self.log_softmax(self.code_logits(row, m))]

    def soft(self, row, m):
        probs = self.probs(row, m)
        return [sum(self.codebooks[m, j, k] * probs[k] for k in range(self.num_words)) for j in range(self.book_dim)]

    def over_all(self, rows, function):
        return np.array([[function(row, m) for m in range(self.num_books)] for row in rows])


@st.composite
def refitted_heads(draw):
    """A refitted head with random shape and weights, and features for it."""
    num_words = draw(st.sampled_from([2, 4, 8]))
    num_books = draw(st.integers(1, 3))
    book_dim = draw(st.integers(num_words, num_words + 3))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    quantizer = RefittedQuantizer(
        num_books,
        book_dim,
        num_words,
        draw(st.sampled_from(["dct", "learned"])),
        draw(st.sampled_from([0.2, 1.0, 5.0])),
    ).requires_grad_(requires_grad=False)
    dim = num_books * book_dim
    quantizer.take(*(3 * torch.randn(2, num_books, dim + 1, num_words)))
    return quantizer.eval(), draw(st.sampled_from([0.1, 1.0, 10.0])) * torch.randn(draw(st.integers(1, 4)), dim)


def vectors_of_people(dim=24, people=40, images=6):
    """Labelled vectors: a centre for each person, and noise."""
    torch.manual_seed(1)
    labels = np.repeat(np.arange(people), images)
    return torch.randn(people, dim)[labels] + 0.4 * torch.randn(len(labels), dim), labels


@pytest.fixture(scope="module")
def fitted():
    """Weights for 3 books of 4 words, found for features of 24 numbers."""
    vectors, labels = vectors_of_people()
    return fit_head(vectors, labels, 3, 4, seed=3)


def refit(fitted, **settings):
    """Build a head that took the weights."""
    torch.manual_seed(0)
    quantizer = RefittedQuantizer(3, 8, 4, **settings)
    quantizer.take(*map(torch.from_numpy, fitted))
    return quantizer.eval()


@settings(max_examples=40, deadline=None)
@given(refitted_heads())
def test_refitted_assignments_and_tables_equal_the_loop(head):
    quantizer, features = head
    oracle = LoopRefit(quantizer)
    output = quantizer(features)
    assert torch.equal(output.features.flatten(1), features)
    np.testing.assert_allclose(output.probs, oracle.over_all(features, oracle.probs), atol=2e-5)
    np.testing.assert_allclose(output.soft, oracle.over_all(features, oracle.soft), atol=2e-5)
    tables = quantizer.lookup_tables(features)
    assert tables.dtype == torch.float32
    assert tables.is_contiguous()
    np.testing.assert_allclose(tables, oracle.over_all(features, oracle.table), rtol=2e-5, atol=2e-4)


@settings(max_examples=40, deadline=None)
@given(refitted_heads())
def test_a_refitted_code_is_the_word_of_the_largest_logit(head):
    quantizer, features = head
    codes = quantizer.encode(features)
    assert codes.dtype == torch.uint8
    oracle = LoopRefit(quantizer)
    logits = oracle.over_all(features, oracle.code_logits)  # (N, M, K)
    chosen = np.take_along_axis(logits, codes.numpy()[:, :, None].astype(np.int64), axis=2)[:, :, 0]
    np.testing.assert_allclose(chosen, logits.max(axis=2), rtol=1e-5, atol=1e-5)


def test_refitted_tables_rank_alike_at_every_temperature(fitted):
    vectors = vectors_of_people()[0]
    quantizer = refit(fitted)
    codes = quantizer.encode(vectors).long()
    scores = [
        quantizer.lookup_tables(vectors[:5].double(), temperature).double().gather(2, codes.T.expand(5, 3, -1)).sum(1)
        for temperature in (0.1, 1.0)
    ]  # (5, N) each
    cold, warm = (score - score.mean(dim=1, keepdim=True) for score in scores)
    torch.testing.assert_close(10 * cold, warm, rtol=1e-4, atol=1e-3)


def test_without_weights_to_take_it_is_bit_for_bit_the_head_of_the_paper():
    plain, features = make()
    torch.manual_seed(0)
    quantizer = RefittedQuantizer(3, 8, 4)
    assert not quantizer.is_refitted
    assert torch.equal(quantizer.projection, plain.projection)
    for mode in (True, False):
        quantizer.train(mode)
        assert all(map(torch.equal, quantizer(features), plain(features)))
    assert torch.equal(quantizer.encode(features), plain.encode(features))
    assert torch.equal(quantizer.lookup_tables(features), plain.lookup_tables(features))
    assert torch.equal(quantizer.lookup_tables(features, 3.0), plain.lookup_tables(features, 3.0))


def test_a_refitted_head_still_trains_as_the_head_of_the_paper(fitted):
    plain, features = make()
    quantizer = refit(fitted).train()
    output = quantizer(features)
    assert all(map(torch.equal, output, plain(features)))
    output.soft.square().sum().backward()
    assert quantizer.projection.grad.abs().max() > 0
    assert [name for name, _ in quantizer.named_parameters()] == ["projection"]


def test_in_evaluation_assignments_and_soft_features_are_those_of_the_refitted_codes(fitted):
    vectors = vectors_of_people()[0]
    quantizer = refit(fitted)
    output = quantizer(vectors)
    assert torch.equal(output.probs.argmax(dim=2).to(torch.uint8), quantizer.encode(vectors))
    torch.testing.assert_close(output.soft, torch.einsum("mdk,nmk->nmd", quantizer.codebooks, output.probs))
    inner_products = torch.einsum("nmd,mdk->nmk", output.soft, quantizer.codebooks)
    torch.testing.assert_close(inner_products, output.probs, rtol=0, atol=1e-6)  # the codewords are orthonormal
    assert not torch.equal(quantizer.encode(vectors), make()[0].encode(vectors))


def test_refitted_codes_do_not_depend_on_the_length_of_the_features(fitted):
    vectors = vectors_of_people()[0]
    quantizer = refit(fitted)
    for factor in (0.25, 8.0, 1024.0):
        assert torch.equal(quantizer.encode(factor * vectors), quantizer.encode(vectors))


def test_of_equal_refitted_words_the_first_is_the_code(fitted):
    vectors = vectors_of_people()[0]
    quantizer = refit(fitted)
    quantizer.code_weights[:, :, 3] = quantizer.code_weights[:, :, 1]
    assert not (quantizer.encode(vectors) == 3).any()
    assert (quantizer.encode(vectors) == 1).any()


def test_a_zero_feature_has_a_refitted_code_and_a_finite_table(fitted):
    quantizer = refit(fitted)
    assert quantizer.encode(torch.zeros(1, 24)).numpy().tolist() == [fitted.codes[:, -1].argmax(axis=1).tolist()]
    assert torch.isfinite(quantizer.lookup_tables(torch.zeros(1, 24))).all()


def test_the_state_of_a_refitted_head_restores_it(fitted):
    vectors = vectors_of_people()[0]
    quantizer = refit(fitted)
    state = quantizer.state_dict()
    assert set(state) == {"codebooks", "projection", "code_weights", "table_weights", "is_refitted"}
    other = RefittedQuantizer(3, 8, 4, seed=5).eval()
    other.load_state_dict(state)
    assert other.is_refitted
    assert torch.equal(other.encode(vectors), quantizer.encode(vectors))
    assert torch.equal(other.lookup_tables(vectors), quantizer.lookup_tables(vectors))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("code_weights", [(3, 24, 4), (3, 25, 4)]), ("table_weights", [(3, 25, 4), (3, 25, 1)])],
)
def test_weights_of_other_shapes_are_refused_and_none_is_taken(name, shapes):
    quantizer = RefittedQuantizer(3, 8, 4)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    with pytest.raises(ConfigError, match=rf"{name} has shape .*; expected \("):
        quantizer.take(*map(torch.ones, shapes))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


@pytest.mark.parametrize("shape", [(4, 23), (4, 25), (24,), (4, 3, 8)])
def test_a_refitted_head_refuses_features_of_another_length(fitted, shape):
    quantizer = refit(fitted)
    for call in (quantizer, quantizer.encode, quantizer.lookup_tables):
        with pytest.raises(ConfigError, match=r"expected \(N, 24\)"):
            call(torch.zeros(shape))


def test_an_empty_batch_has_no_refitted_codes_and_tables(fitted):
    quantizer = refit(fitted)
    assert quantizer.encode(torch.empty(0, 24)).shape == (0, 3)
    assert quantizer.lookup_tables(torch.empty(0, 24)).shape == (0, 3, 4)
    assert quantizer(torch.empty(0, 24)).probs.shape == (0, 3, 4)


def test_autocast_does_not_change_what_a_refitted_head_gives(fitted):
    vectors = vectors_of_people()[0]
    quantizer = refit(fitted)
    plain = *quantizer(vectors), quantizer.encode(vectors), quantizer.lookup_tables(vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = *quantizer(vectors), quantizer.encode(vectors), quantizer.lookup_tables(vectors)
    assert all(map(torch.equal, plain, cast))
    rounded = vectors.bfloat16()
    assert torch.equal(quantizer.encode(rounded), quantizer.encode(rounded.float()))
