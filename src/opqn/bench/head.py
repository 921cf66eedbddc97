"""Benchmark of the training head: quantizer and loss, forward and backward, against a loop over the books.

Both sides compute the same thing from the same weights (Zhang, Zhe, Yan 2023, sections 3.2 and 3.3); loss and gradients
are compared before anything is timed. The loop is what the formulas say when written down one book at a time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from opqn.bench._memory import MEBIBYTE, PeakMemory
from opqn.bench._memory import peak_memory as _peak_memory
from opqn.errors import ConfigError, OpqnError
from opqn.losses import OPQNLoss
from opqn.quantizer import OrthonormalQuantizer

Side = Literal["ours", "loop"]
SIDES: Final[tuple[Side, Side]] = ("ours", "loop")
TOLERANCE: Final = 1e-4  # largest error of loss and gradients, relative to the largest entry of each
MEMORY_PROCESSES: Final = 3  # odd, so that the median is one of them


class HeadShape(NamedTuple):
    """Size of the problem; the defaults are the paper's 64-bit setting with 2,000 people."""

    num_books: int = 8
    num_words: int = 256
    book_dim: int = 256
    num_classes: int = 2000
    batch: int = 256


class HeadInputs(NamedTuple):
    """What both sides work on."""

    quantizer: OrthonormalQuantizer
    loss: OPQNLoss
    features: Tensor
    """(N, M*d) float32, requires a gradient as the backbone's output does."""
    labels: Tensor
    """(N,) int64."""


def make_inputs(shape: HeadShape, seed: int = 0) -> HeadInputs:
    """Draw weights, features and labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        quantizer = OrthonormalQuantizer(shape.num_books, shape.book_dim, shape.num_words)
        loss = OPQNLoss(shape.num_classes, shape.num_books, shape.book_dim)
        features = torch.randn(shape.batch, shape.num_books * shape.book_dim).requires_grad_()
        labels = torch.randint(shape.num_classes, (shape.batch,))
    return HeadInputs(quantizer, loss, features, labels)


def ours(inputs: HeadInputs) -> Tensor:
    """Return the loss as the package computes it."""
    total: Tensor = inputs.loss(inputs.quantizer(inputs.features), inputs.labels).total
    return total


def loop(inputs: HeadInputs) -> Tensor:
    """Return the loss computed straightforwardly, book by book, with one-hot margins and autograd throughout."""
    quantizer, loss, features, labels = inputs
    num_books = len(quantizer.codebooks)
    criterion = nn.CrossEntropyLoss()
    original = quantized = entropy = features.new_zeros(())
    for m, part in enumerate(features.chunk(num_books, dim=1)):
        probs = functional.softmax(part @ quantizer.projection[m], dim=1)  # (N, K)
        soft = probs @ quantizer.codebooks[m].T  # (N, d)
        weight = functional.normalize(loss.prototypes[m])  # (classes, d)
        original = original + criterion(_one_hot_margin(part, weight, labels, loss.scale, loss.margin), labels)
        quantized = quantized + criterion(_one_hot_margin(soft, weight, labels, loss.scale, loss.margin), labels)
        entropy = entropy - (probs * torch.log(probs)).sum(dim=1).mean()
    return (0.5 * (original + quantized) + loss.mu * entropy) / num_books


def _one_hot_margin(vectors: Tensor, weight: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    cosine = functional.linear(functional.normalize(vectors), weight)  # (N, classes)
    one_hot = torch.zeros_like(cosine).scatter_(1, labels.view(-1, 1), 1.0)
    return scale * (one_hot * (cosine - margin) + (1.0 - one_hot) * cosine)


HEADS: Final[dict[Side, Callable[[HeadInputs], Tensor]]] = {"ours": ours, "loop": loop}


def step(inputs: HeadInputs, side: Side) -> tuple[float, list[Tensor]]:
    """Run one side forward and backward.

    Returns:
        The loss, and its gradients by the features, the projection and the prototypes.
    """
    leaves = [inputs.features, inputs.quantizer.projection, inputs.loss.prototypes]
    for leaf in leaves:
        leaf.grad = None
    total = HEADS[side](inputs)
    total.backward()  # type: ignore[no-untyped-call]
    return total.item(), [leaf.grad for leaf in leaves if leaf.grad is not None]


def largest_error(inputs: HeadInputs) -> float:
    """Compare the two sides: the largest difference of the loss or a gradient, relative to its largest entry."""
    loss_ours, gradients_ours = step(inputs, "ours")
    loss_loop, gradients_loop = step(inputs, "loop")
    errors = [abs(loss_ours - loss_loop) / abs(loss_loop)]
    for mine, other in zip(gradients_ours, gradients_loop, strict=True):
        errors.append(((mine - other).abs().max() / other.abs().max()).item())
    return max(errors)


def time_pairs(inputs: HeadInputs, pairs: int) -> dict[Side, list[float]]:
    """Time both sides alternately, so that a change of the machine's load hits both.

    Returns:
        Seconds a step, ``pairs`` of them a side; the first of a pair changes from pair to pair.
    """
    seconds: dict[Side, list[float]] = {"ours": [], "loop": []}
    for pair in range(pairs):
        for side in SIDES if pair % 2 else reversed(SIDES):
            start = time.perf_counter()
            step(inputs, side)
            seconds[side].append(time.perf_counter() - start)
    return seconds


def peak_memory(shape: HeadShape, side: Side, threads: int = 2) -> PeakMemory:
    """Measure one side's peak memory, each time in a fresh process.

    Weights, features and labels exist before, and one step on a tiny problem has run; then comes one step forward and
    backward. What it adds to the resident set at its peak is counted: activations, gradients, work space of the matrix
    products, and what the allocator holds back. The last differs from process to process, hence several of them.

    Returns:
        Medians of three processes.

    Raises:
        OpqnError: not on Linux, or a measuring process died.
    """
    measured = [_peak_memory(_prepare, _work, shape, side, threads) for _ in range(MEMORY_PROCESSES)]
    growths, peaks = zip(*measured, strict=True)
    return PeakMemory(statistics.median(growths), statistics.median(peaks))


def _prepare(shape: HeadShape, side: Side, threads: int) -> HeadInputs:
    torch.set_num_threads(threads)
    # Loads kernels and starts threads, which both sides need and neither should be charged for.
    step(make_inputs(HeadShape(2, 4, 4, 3, 5)), side)
    return make_inputs(shape)


def _work(_shape: HeadShape, side: Side, _threads: int, inputs: HeadInputs) -> None:
    step(inputs, side)


def run(
    pairs: int = 15, threads: int = 2, shape: HeadShape | None = None, *, memory: bool = True, seed: int = 0
) -> dict[str, Any]:
    """Check, time and weigh both sides on the CPU in float32.

    Args:
        pairs: timed steps a side.
        threads: of PyTorch, also in the processes that measure memory.
        shape: size of the problem; the default is :class:`HeadShape` as it stands.
        memory: measure peak memory too (Linux only).
        seed: of weights, features and labels.

    Returns:
        A JSON-ready document: ``shape``, ``threads``, ``pairs``, ``largest_error``, ``speedup`` (median over pairs of
        the loop's time divided by ours), and for each side, ``ours`` and ``loop``, ``seconds`` (median) and, if
        measured, ``peak_growth_bytes`` and ``peak_bytes``; then also ``memory_ratio``, our growth by the loop's.

    Raises:
        ConfigError: pairs or threads below one.
        OpqnError: loss or gradients of the two sides differ by more than 1e-4, relative; memory off Linux.
    """
    if pairs < 1 or threads < 1:
        raise ConfigError(f"pairs ({pairs}) and threads ({threads}) must be at least 1")
    shape = shape or HeadShape()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        inputs = make_inputs(shape, seed)
        error = largest_error(inputs)
        if not error <= TOLERANCE:
            raise OpqnError(f"the two heads disagree: relative error {error:.1e}, allowed {TOLERANCE:.0e}; do not time")
        seconds = time_pairs(inputs, pairs)
    finally:
        torch.set_num_threads(threads_before)
    sides: dict[str, dict[str, float]] = {side: {"seconds": statistics.median(seconds[side])} for side in SIDES}
    result: dict[str, Any] = {
        "shape": shape._asdict(),
        "threads": threads,
        "pairs": pairs,
        "largest_error": error,
        "speedup": statistics.median(b / a for a, b in zip(seconds["ours"], seconds["loop"], strict=True)),
        **sides,
    }
    if memory:
        for side in SIDES:
            sides[side]["peak_growth_bytes"], sides[side]["peak_bytes"] = peak_memory(shape, side, threads)
        result["memory_ratio"] = sides["ours"]["peak_growth_bytes"] / sides["loop"]["peak_growth_bytes"]
    return result


def table(result: dict[str, Any]) -> str:
    """Lay out what :func:`run` returned as a Markdown table with a line on what was measured."""
    names = {"ours": "opqn", "loop": "loop over the books"}
    rows = ["| training head | ms a step | peak growth, MiB | peak of the process, MiB |", "|---|--:|--:|--:|"]
    for side in SIDES:
        figures = result[side]
        memory = [
            f"{figures[key] / MEBIBYTE:.0f}" if key in figures else "-" for key in ("peak_growth_bytes", "peak_bytes")
        ]
        rows.append(f"| {names[side]} | {1000 * figures['seconds']:.0f} | {memory[0]} | {memory[1]} |")
    ratio = f", {result['memory_ratio']:.2f} of the memory" if "memory_ratio" in result else ""
    shape = ", ".join(f"{key} {value:,}" for key, value in result["shape"].items())
    summary = (
        f"{result['speedup']:.2f} times as fast{ratio}; float32, {result['threads']} CPU threads, {shape}; median of "
        f"{result['pairs']} alternating pairs; loss and gradients agree to {result['largest_error']:.0e}."
    )
    return "\n".join([*rows, "", summary])


if __name__ == "__main__":
    print(table(run()))
