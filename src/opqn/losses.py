"""Training loss: a margin softmax per subspace on original and quantized features, and the entropy of the assignment.

Zhang, Zhe, Yan 2023, section 3.3; the margin is CosFace's (Wang et al. 2018). Per subspace m and sample n of class y,
with prototypes W_m and features L2-normalised::

    original logits  = scale * (cos(x_m, W_m) - margin at y)
    quantized logits = scale * (cos(s_m, W_m) - margin at y)
    classification   = 1/2 * (mean over n, m of CE(original) + mean over n, m of CE(quantized))
    entropy          = mean over n, m of -sum_k p log p
    total            = classification + mu * entropy
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from opqn.errors import ConfigError
from opqn.quantizer import QuantizerOutput

# Logits that exist at any one time, in numbers: 16 MiB make products fast and are far below the whole (N, M, classes).
LOGITS_AT_ONCE = 1 << 22
LEAST_ROWS = 64  # of a matrix product; with fewer, reading the prototypes costs more than multiplying by them
EQUAL_SHARE = 0.5
NORM_FLOOR = 1e-12  # as torch.nn.functional.normalize


class LossParts(NamedTuple):
    """The loss of a batch and what it is made of; all scalars."""

    total: Tensor
    original: Tensor
    quantized: Tensor
    entropy: Tensor


class _MarginCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of ``scale * (cos - margin at the label)`` over two branches, all books at once.

    The gradient is worked out in the forward pass, chunk by chunk, while the logits are at hand. So the two
    (N, M, classes) tensors of logits, by far the largest of the training head, never exist as a whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        soft: Tensor,
        prototypes: Tensor,
        labels: Tensor,
        scale: float,
        margin: float,
        original_share: float,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the (2, M, N) losses of two (N, M, d) tensors, by (M, classes, d) prototypes.

        The loss is the mean over rows and books, the first tensor's counting with ``original_share``.
        """
        rows, num_books, _ = features.shape
        num_classes = prototypes.shape[1]
        targets = labels.repeat(2).view(1, -1, 1).expand(num_books, -1, 1)  # (M, 2N, 1)
        # The scale is put on the vectors, where it costs less than on the logits.
        vectors = torch.cat([features, soft]).transpose(0, 1).contiguous()  # (M, 2N, d)
        shrink = scale / vectors.norm(dim=2, keepdim=True).clamp_min_(NORM_FLOOR)  # (M, 2N, 1)
        vectors *= shrink
        norms = prototypes.norm(dim=2, keepdim=True).clamp_min_(NORM_FLOOR)  # (M, classes, 1)
        weights = prototypes / norms  # (M, classes, d)
        losses = features.new_empty(num_books, 2 * rows, 1)
        if wants_gradient:
            vector_grad = torch.empty_like(vectors)
            prototype_grad = torch.empty_like(prototypes)
        shares = features.new_full((2 * rows, 1), 2 * (1 - original_share))  # (2N, 1), on average 1
        shares[:rows] = 2 * original_share
        chunk = min(2 * rows, max(LEAST_ROWS, LOGITS_AT_ONCE // (num_books * num_classes)))
        for start in range(0, 2 * rows, chunk):
            part = slice(start, start + chunk)
            target = targets[:, part]
            logits = torch.bmm(vectors[:, part], weights.transpose(1, 2))  # (M, chunk, classes)
            logits.scatter_add_(2, target, logits.new_full(target.shape, -scale * margin))
            log_softmax = torch.log_softmax(logits, dim=2, out=logits)
            losses[:, part] = -log_softmax.gather(2, target)
            if wants_gradient:
                softmax = log_softmax.exp_()
                softmax.scatter_add_(2, target, softmax.new_full(target.shape, -1.0))  # d loss / d logits
                if original_share != EQUAL_SHARE:
                    softmax *= shares[part]
                vector_grad[:, part] = torch.bmm(softmax, weights)
                prototype_grad.baddbmm_(softmax.transpose(1, 2), vectors[:, part], beta=min(start, 1))
        if wants_gradient:
            mean_grad = 1 / (2 * num_books * rows)
            # Through the normalisation u = v / |v|: dv = (du - u <u, du>) / |v|
            along = torch.linalg.vecdot(weights, prototype_grad).unsqueeze(2)
            prototype_grad.addcmul_(weights, along, value=-1).mul_(mean_grad / norms)
            along = torch.linalg.vecdot(vectors, vector_grad).unsqueeze(2) / scale**2
            vector_grad.addcmul_(vectors, along, value=-1).mul_(shrink * mean_grad)
            ctx.save_for_backward(vector_grad, prototype_grad)
        losses = losses.view(num_books, 2, rows).transpose(0, 1)
        ctx.mark_non_differentiable(losses)
        weights_of_branches = losses.new_tensor([original_share, 1 - original_share])
        return losses.mean(dim=(1, 2)) @ weights_of_branches, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the saved gradients."""
        vector_grad, prototype_grad = ctx.saved_tensors
        # A plain ``total.backward()`` brings grad = 1; the largest gradient is then handed on without a copy. Off the
        # CPU, asking would stall the queue and cost more than the copy.
        if not (grad.is_cpu and grad.item() == 1):
            vector_grad, prototype_grad = vector_grad * grad, prototype_grad * grad
        features_grad, soft_grad = vector_grad.transpose(0, 1).chunk(2)
        return features_grad, soft_grad, prototype_grad, None, None, None, None, None


class OPQNLoss(nn.Module):
    """The paper's loss; it owns the class prototypes W, which are no part of a saved model.

    Args:
        num_classes: people in the training set, at least 2.
        num_books: M.
        book_dim: d.
        scale: of the cosine logits; the authors use 20 for 32-px sets and 40 for VGGFace2.
        margin: subtracted from the true class's cosine; the authors' code says 0.5.
        mu: weight of the entropy term; the authors' code says 0.1.
        original_share: of the original features in the classification loss, the rest is of the quantized ones; the
            paper's is 1/2, 0 and 1 leave one of them out.

    Raises:
        ConfigError: fewer than two classes, a scale that is not positive, a negative margin or mu, or a share outside
            0..1.
    """

    def __init__(
        self,
        num_classes: int,
        num_books: int,
        book_dim: int,
        scale: float = 20.0,
        margin: float = 0.5,
        mu: float = 0.1,
        original_share: float = EQUAL_SHARE,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError(f"training needs at least 2 people, not {num_classes}")
        if not scale > 0 or margin < 0 or mu < 0:
            raise ConfigError(f"scale ({scale}) must be positive, margin ({margin}) and mu ({mu}) not negative")
        if not 0 <= original_share <= 1:
            raise ConfigError(f"original_share is {original_share}; it must lie in 0..1")
        self.scale = scale
        self.margin = margin
        self.mu = mu
        self.original_share = original_share
        self.prototypes = nn.Parameter(torch.empty(num_books, num_classes, book_dim))  # (M, classes, d)
        nn.init.xavier_uniform_(self.prototypes)  # as the authors: over the whole tensor

    def logits(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the (N, M, classes) margin logits of (N, M, d) vectors with (N,) labels.

        The formula in the open, for inspection and tests; training never makes this tensor.
        """
        cosines = torch.matmul(
            functional.normalize(vectors, dim=2).transpose(0, 1),
            functional.normalize(self.prototypes, dim=2).transpose(1, 2),
        ).transpose(0, 1)
        is_true = functional.one_hot(labels, cosines.shape[2]).unsqueeze(1).to(cosines.dtype)
        return self.scale * (cosines - self.margin * is_true)

    def forward(self, output: QuantizerOutput, labels: Tensor) -> LossParts:
        """Return the loss of a batch.

        Computed in the dtype of the prototypes, also under autocast: half-precision features are raised to float32.

        Args:
            output: what :class:`opqn.quantizer.OrthonormalQuantizer` made of the batch, N rows.
            labels: (N,) int64 in 0..classes-1. The range is checked on the CPU only; a GPU has its own assertion for
                it, and asking would stall every step.

        Raises:
            ConfigError: an empty batch, features of another shape than the prototypes, or labels of another length,
                type or range.
        """
        rows = len(output.features)
        num_books, num_classes, book_dim = self.prototypes.shape
        if rows == 0 or output.features.shape[1:] != (num_books, book_dim):
            shape = tuple(output.features.shape)
            raise ConfigError(f"features have shape {shape}; this loss needs (N, {num_books}, {book_dim}) with N > 0")
        if labels.shape != (rows,) or labels.dtype != torch.int64:
            raise ConfigError(f"labels must be ({rows},) int64, not {tuple(labels.shape)} {labels.dtype}")
        if labels.is_cpu and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ConfigError(
                f"labels span {int(labels.min())}..{int(labels.max())}; this loss has the classes 0..{num_classes - 1}"
            )
        features, probs, soft = (tensor.to(self.prototypes.dtype) for tensor in output)
        with torch.autocast(labels.device.type, enabled=False):
            classification, losses = _MarginCrossEntropy.apply(  # type: ignore[no-untyped-call]
                features,
                soft,
                self.prototypes,
                labels,
                self.scale,
                self.margin,
                self.original_share,
                torch.is_grad_enabled(),
            )
            entropy = assignment_entropy(probs)
        return LossParts(classification + self.mu * entropy, losses[0].mean(), losses[1].mean(), entropy)


def assignment_entropy(probs: Tensor) -> Tensor:
    """Mean entropy, in nats, of the soft assignments (..., K)."""
    # The derivative of -p log p at an underflowed p = 0 is infinite; the floor makes it zero there.
    entropies: Tensor = torch.special.entr(probs.clamp_min(torch.finfo(probs.dtype).tiny)).sum(dim=-1)
    return entropies.mean()
