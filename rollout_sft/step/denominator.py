"""Says what the losses of a window are divided by, also where the window's weight is known only at its end.

[`~rollout_sft.step.loss.share_of_window`] divides. A window whose packs are trained while its last rollouts are still
generated divides by a power of two first, which is exact, and multiplies the gradients once, after the last backward
and before they are clipped. The power is close to the weight that is expected, so that half-precision gradients
neither overflow nor vanish.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class Denominator:
    """
    Holds what the losses of the current window are divided by.

    Attributes:
        used (`float`):
            What every loss of the window is divided by.
    """

    def begin(self) -> None:
        """Begins a window."""
        self.used = 0.0
        self._exact = 0.0

    def expect(self, weight_sum: float) -> None:
        """
        Says what the window's weight is about to be; only the first call of a window counts.

        Args:
            weight_sum (`float`):
                An estimate that is equal on every rank; 0 where nothing is known.
        """
        if not self.used:
            self.used = 2.0 ** round(math.log2(weight_sum)) if weight_sum > 0 else 1.0

    def settle(self, weight_sum: float) -> None:
        """
        Says what the window's weight is; without an earlier estimate the losses are divided by it.

        Args:
            weight_sum (`float`):
                The sum of the loss weights over the window and all ranks, more than 0.
        """
        self._exact = weight_sum
        self.used = self.used or weight_sum

    @property
    def is_settled(self) -> bool:
        """Returns whether the window's weight is known."""
        return self._exact > 0

    @property
    def correction(self) -> float:
        """Returns the factor that losses and gradients of the window still need; 1 where it is known beforehand."""
        assert self.is_settled, "the window is not complete"
        return self.used / self._exact


@torch.no_grad()
def scale_gradients(model: nn.Module, factor: float) -> None:
    """
    Multiplies all gradients, after they were reduced over the ranks; of sharded ones this rank's part.

    Args:
        model (`nn.Module`):
            The model, wrapped or not.
        factor (`float`):
            Equal on every rank; for 1 nothing is done.
    """
    if factor != 1.0:
        gradients = [getattr(p.grad, "_local_tensor", p.grad) for p in model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
