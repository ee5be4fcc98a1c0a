"""Computes the loss of a pack: a weighted sum of cross-entropies that needs little memory beyond the logits.

The logits of the supervised positions are the only tensor of their size. The forward computes the cross-entropy a few
rows at a time, and the backward overwrites each logit with its gradient. So there is never a float32 copy, a
log-softmax or a gradient of the full size in addition to the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**24
"""How many logits are held in float32 at a time: 64 MiB per temporary."""


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """
    Sums weight times cross-entropy over the supervised positions; the caller divides by the window's total.

    Needs, beyond `logits`, two float32 temporaries of at most `max(chunk, vocabulary)` elements. The backward
    overwrites `logits` with the gradient, so autograd refuses a second backward through the same graph.

    Args:
        logits (`Tensor` of shape `(supervised, vocabulary)`):
            The loss is computed in float32, or in float64 when the logits are float64.
        targets (`Tensor` of shape `(supervised,)`, int64):
            Target token ids.
        weights (`Tensor` of shape `(supervised,)`):
            Loss weights.
        chunk (`int`, *optional*, defaults to `CHUNK`):
            How many logits are processed at a time.

    Returns:
        `Tensor`: A scalar that depends on the logits even when nothing is supervised, so that an empty
        micro-step still has a backward.
    """
    loss: Tensor = _WeightedCrossEntropy.apply(logits, targets, weights, max(1, chunk // max(1, logits.shape[-1])))
    return loss


def share_of_window(loss: Tensor, *, window_weight: Tensor | float, ranks: int) -> Tensor:
    """
    Divides a pack's loss by the weight of its whole window.

    Ranks average their gradients, so each multiplies by their number. A loss that is not finite gets a gradient that is
    NaN everywhere: without that an infinite loss may have a finite gradient (a target whose probability is 0, say).

    Args:
        loss (`Tensor`):
            A scalar, from [`weighted_loss`].
        window_weight (`float`):
            Sum of the loss weights over the window and all ranks.
        ranks (`int`):
            How many ranks average their gradients.

    Returns:
        `Tensor`: exactly `loss * (ranks / window_weight)` when the loss is finite.
    """
    return loss * (ranks / window_weight + 0 * loss.detach())


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, rows: int) -> Tensor:
        working = torch.promote_types(logits.dtype, torch.float32)
        weights = weights.to(working)
        normaliser = torch.empty(targets.shape, dtype=working, device=logits.device)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            torch.logsumexp(logits[part].to(working), dim=-1, out=normaliser[part])
        chosen = logits.gather(1, targets[:, None]).squeeze(1).to(working)
        ctx.save_for_backward(logits, targets, weights, normaliser)
        ctx.rows = rows
        return ((normaliser - chosen) * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, weights, normaliser = ctx.saved_tensors
        scale = weights * upstream
        for start in range(0, len(targets), ctx.rows):
            part = slice(start, start + ctx.rows)
            # softmax, minus 1 at the target, times the weight
            gradient = (logits[part].to(normaliser.dtype) - normaliser[part, None]).exp_()
            gradient.scatter_add_(1, targets[part, None], gradient.new_full((1, 1), -1.0).expand(len(gradient), 1))
            logits[part] = gradient.mul_(scale[part, None])
        return logits, None, None, None
