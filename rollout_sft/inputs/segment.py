"""What one sample becomes before it is trained on: a teacher-forced segment.

A [`Segment`] is atomic: packing may place it beside others but never cuts it. Targets are explicit and aligned
with the logits, so no shift happens after packing and no target can cross the border between two segments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from packsched import Pack, PackLayout

SUPERVISED = "supervised"
"""Name of the index field that every segment has: the positions whose weight is not zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """
    One teacher-forced sequence with a target and a weight at every position.

    Args:
        input_ids (`Tensor` of shape `(encoded_len,)`, int64):
            The tokens the model reads.
        targets (`Tensor` of shape `(encoded_len,)`, int64):
            `targets[t]` is the token that the logits *at* position `t` are trained towards. It need not be
            `input_ids[t + 1]`: a coordinate of a rollout stays in the input while the truth is the target.
        weights (`Tensor` of shape `(encoded_len,)`, float32):
            Loss weight of each position; 0 where nothing is supervised. The last position's is always 0.
        indices (`dict[str, Tensor]`):
            Named int64 positions within the segment, remapped when it is packed. Always holds `"supervised"`.
        weight_sum (`float`):
            Sum of `weights`, known on the host so that nothing waits for the device.
        sample_id (`str`):
            Where the segment came from, for error messages.
    """

    input_ids: Tensor
    targets: Tensor
    weights: Tensor
    indices: dict[str, Tensor] = field(default_factory=dict)
    weight_sum: float
    sample_id: str = ""

    def __post_init__(self) -> None:
        """On the CPU the two copies of the weights are compared; on a device that would wait for it."""
        if self.weights.device.type != "cpu":
            return
        total = float(self.weights.sum(dtype=torch.float64))
        if not math.isclose(total, self.weight_sum, rel_tol=1e-5, abs_tol=1e-9):
            raise ValueError(
                f"segment of sample {self.sample_id!r}: weight_sum is {self.weight_sum}, but the weights sum to "
                f"{total}. "
                "It is the segment's share of the loss's denominator; change both together."
            )

    @property
    def encoded_len(self) -> int:
        """Tokens in the segment, from the tensor's shape: no device synchronisation."""
        return self.input_ids.shape[0]

    @classmethod
    def from_lists(
        cls,
        input_ids: Sequence[int],
        targets: Sequence[int],
        weights: Sequence[float],
        *,
        indices: Mapping[str, Sequence[int]] | None = None,
        sample_id: str = "",
    ) -> Segment:
        """
        Builds a segment on the CPU from host lists, checking what a silent mistake would train wrongly.

        Args:
            input_ids (`Sequence[int]`):
                The tokens the model reads; at least one.
            targets (`Sequence[int]`):
                Same length; the value under a zero weight is never read.
            weights (`Sequence[float]`):
                Same length, none negative, the last one 0: no position follows it.
            indices (`Mapping[str, Sequence[int]]`, *optional*):
                Further named positions; `"supervised"` is derived here.
            sample_id (`str`, *optional*):
                Where the segment came from.

        Raises:
            `ValueError`: lengths differ, a weight is negative, the last position is supervised, or an index
                lies outside the segment.
        """
        n = len(input_ids)
        where = f"segment of sample {sample_id!r}"
        if n == 0:
            raise ValueError(f"{where}: no tokens; a segment needs at least one.")
        if len(targets) != n or len(weights) != n:
            raise ValueError(
                f"{where}: {n} input_ids, {len(targets)} targets and {len(weights)} weights; "
                "give one target and one weight for every token."
            )
        wrong = [w for w in weights if not 0 <= w < math.inf]
        if wrong:
            raise ValueError(f"{where}: a weight is {wrong[0]}; weights are finite and 0 or more.")
        if weights[-1] != 0:
            raise ValueError(
                f"{where}: the last position has weight {weights[-1]}, but no token follows it; "
                "targets are aligned with the logits: targets[t] is what position t predicts."
            )
        fields = {**(indices or {}), SUPERVISED: [t for t, w in enumerate(weights) if w > 0]}
        for name, positions in fields.items():
            outside = [p for p in positions if not 0 <= p < n]
            if outside:
                raise ValueError(
                    f"{where}: index field {name!r} holds position {outside[0]}, but the segment has {n} tokens."
                )
        return cls(
            input_ids=torch.tensor(input_ids, dtype=torch.int64),
            targets=torch.tensor(targets, dtype=torch.int64),
            weights=torch.tensor(weights, dtype=torch.float32),
            indices={name: torch.tensor(list(p), dtype=torch.int64) for name, p in fields.items()},
            weight_sum=float(sum(weights)),
            sample_id=sample_id,
        )

    def to(self, device: torch.device | str) -> Segment:
        """Returns the segment with its tensors on `device`; the host copies of length and weight stay."""
        if self.input_ids.device == torch.device(device):
            return self
        return Segment(
            input_ids=self.input_ids.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            indices={name: p.to(device, non_blocking=True) for name, p in self.indices.items()},
            weight_sum=self.weight_sum,
            sample_id=self.sample_id,
        )


def pack_of(segments: Sequence[Segment]) -> Pack[Segment]:
    """Makes one pack of segments that no schedule had to place; its `packing_length` is what they need."""
    layout = PackLayout.from_lengths([s.encoded_len for s in segments])
    return Pack(tuple(segments), tuple(range(len(segments))), layout, max(1, layout.total))
