"""The head benchmark compares like with like: both sides agree before they are timed, and a wrong one is found."""

import json
import math
import sys

import pytest
import torch

from opqn import ConfigError, OpqnError
from opqn.bench import head
from opqn.bench.head import HeadShape, largest_error, make_inputs, run, step, table

SMALL = HeadShape(num_books=3, num_words=8, book_dim=16, num_classes=50, batch=20)


@pytest.mark.parametrize("shape", [SMALL, HeadShape(1, 2, 2, 2, 1), HeadShape(2, 16, 16, 300, 33)])
def test_both_sides_have_the_same_loss_and_gradients(shape):
    assert largest_error(make_inputs(shape)) < 1e-5


def test_the_loop_is_the_papers_formula_for_one_book_of_two_words():
    inputs = make_inputs(HeadShape(num_books=1, num_words=2, book_dim=2, num_classes=2, batch=1))
    x = inputs.features[0].tolist()
    projection = inputs.quantizer.projection[0].tolist()
    codebook = inputs.quantizer.codebooks[0].tolist()
    label = inputs.labels.item()
    exponentials = [math.exp(x[0] * projection[0][k] + x[1] * projection[1][k]) for k in range(2)]
    p = [value / sum(exponentials) for value in exponentials]
    s = [codebook[j][0] * p[0] + codebook[j][1] * p[1] for j in range(2)]
    cross_entropies = []
    for v in (x, s):
        logits = []
        for c, w in enumerate(inputs.loss.prototypes[0].tolist()):
            cosine = (v[0] * w[0] + v[1] * w[1]) / (math.hypot(*v) * math.hypot(*w))
            logits.append(20 * (cosine - (0.5 if c == label else 0)))
        cross_entropies.append(math.log(sum(map(math.exp, logits))) - logits[label])
    entropy = -sum(value * math.log(value) for value in p)
    expected = sum(cross_entropies) / 2 + 0.1 * entropy
    for side in head.SIDES:
        assert step(inputs, side)[0] == pytest.approx(expected, rel=1e-5)


def test_a_seed_repeats_the_problem_and_leaves_the_global_one_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (make_inputs(SMALL, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.loss.prototypes, again.loss.prototypes)
    assert not torch.equal(first.features, other.features)


def test_a_step_gives_the_gradients_of_that_step_alone():
    inputs = make_inputs(SMALL)
    first = [gradient.clone() for gradient in step(inputs, "ours")[1]]
    second = step(inputs, "ours")[1]
    assert len(first) == 3
    for before, after in zip(first, second, strict=True):
        torch.testing.assert_close(before, after)


def test_the_document_is_json_and_its_table_quotes_it():
    threads = torch.get_num_threads()
    result = run(pairs=3, threads=1, shape=SMALL, memory=False)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(result)) == result
    assert result["shape"] == SMALL._asdict()
    assert result["speedup"] > 0
    assert result["largest_error"] < 1e-5
    text = table(result)
    assert f"| opqn | {1000 * result['ours']['seconds']:.0f} | - | - |" in text
    assert f"{result['speedup']:.2f} times as fast; float32, 1 CPU threads" in text
    assert "num_classes 50, batch 20" in text


def test_the_default_is_the_64_bit_setting_with_2000_people():
    assert HeadShape() == (8, 256, 256, 2000, 256)


@pytest.mark.parametrize("wrong", [lambda total: 1.001 * total, lambda total: total.detach() + 0 * total])
def test_sides_that_disagree_are_not_timed(wrong, monkeypatch):
    monkeypatch.setitem(head.HEADS, "loop", lambda inputs: wrong(head.loop(inputs)))
    monkeypatch.setattr(head, "time_pairs", None)
    with pytest.raises(OpqnError, match="the two heads disagree"):
        run(pairs=1, threads=1, shape=SMALL, memory=False)


def test_the_speedup_is_the_median_over_pairs(monkeypatch):
    seconds = {"ours": [1.0, 2.0, 4.0], "loop": [2.0, 10.0, 4.0]}
    monkeypatch.setattr(head, "time_pairs", lambda *_: seconds)
    result = run(pairs=3, threads=1, shape=SMALL, memory=False)
    assert (result["speedup"], result["ours"]["seconds"], result["loop"]["seconds"]) == (2.0, 2.0, 4.0)


@pytest.mark.parametrize("settings", [{"pairs": 0}, {"threads": 0}])
def test_counts_below_one_are_refused(settings):
    with pytest.raises(ConfigError, match="must be at least 1"):
        run(shape=SMALL, memory=False, **settings)


def test_memory_off_linux_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OpqnError, match="Linux only; pass memory=False"):
        head.peak_memory(SMALL, "ours")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc, which only Linux has")
def test_the_loop_holds_all_logits_at_once_and_ours_never_does(monkeypatch):
    monkeypatch.setattr(head, "MEMORY_PROCESSES", 1)
    shape = HeadShape(num_books=8, num_words=16, book_dim=16, num_classes=4000, batch=256)
    all_logits = 2 * 8 * 256 * 4000 * 4  # bytes
    result = run(pairs=1, threads=1, shape=shape)
    assert 0 < result["ours"]["peak_growth_bytes"] < all_logits < result["loop"]["peak_growth_bytes"]
    assert result["memory_ratio"] < 0.5
    assert result["ours"]["peak_growth_bytes"] < result["ours"]["peak_bytes"]
    assert f"{result['memory_ratio']:.2f} of the memory" in table(result)
