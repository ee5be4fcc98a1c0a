"""Defines the teacher-forced segment that each sample becomes before training.

A [`Segment`] is atomic: packing places it next to others but never cuts it. Targets are explicit and aligned
with the logits, so nothing is shifted after packing and no target can cross the border between two segments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from packsched import Pack, PackLayout
from rollout_sft.inputs.images import Image

SUPERVISED = "supervised"
"""Name of the index field that every segment has; it holds the positions whose weight is not zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """
    Holds one teacher-forced sequence with a target and a weight at every position.

    Args:
        input_ids (`Tensor` of shape `(encoded_len,)`, int64):
            The tokens the model reads.
        targets (`Tensor` of shape `(encoded_len,)`, int64):
            `targets[t]` is the token that the logits *at* position `t` are trained towards. It need not be
            `input_ids[t + 1]`: a coordinate of a rollout stays in the input while the truth is the target.
        weights (`Tensor` of shape `(encoded_len,)`, float32):
            Loss weight of each position; 0 where nothing is supervised. The last position always has weight 0.
        indices (`dict[str, Tensor]`):
            Named int64 positions within the segment; packing remaps them. `"supervised"` is added from the weights
            when it is not given.
        weight_sum (`float`):
            Sum of `weights`, known on the host so that nothing waits for the device.
        sample_id (`str`):
            The sample of the segment, for error messages.
        images (`tuple[Image, ...]`):
            The images of its tokens, by reference, in the order of their tokens.

    Raises:
        `ValueError`: lengths differ, a weight is negative or not finite, the last position is supervised,
            `weight_sum` or `"supervised"` does not match the weights, or an index lies outside the segment.
    """

    input_ids: Tensor
    targets: Tensor
    weights: Tensor
    indices: dict[str, Tensor] = field(default_factory=dict)
    weight_sum: float
    sample_id: str = ""
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        """Refuses values that would silently train something else; on a device, checks only what needs no wait."""
        n, where = self.input_ids.numel(), f"segment of sample {self.sample_id!r}"
        if n == 0:
            raise ValueError(f"{where}: no tokens; a segment needs at least one.")
        shapes = {tuple(values.shape) for values in (self.input_ids, self.targets, self.weights)}
        if shapes != {(n,)}:
            raise ValueError(
                f"{where}: {_size(self.input_ids)} input_ids, {_size(self.targets)} targets and {_size(self.weights)} "
                "weights; give one target and one weight for every token, in one dimension."
            )
        if self.weights.device.type == "cpu":
            self._check_values(where)
        elif SUPERVISED not in self.indices:
            raise ValueError(
                f"{where}: no index field {SUPERVISED!r}, and finding it would wait for {self.weights.device}; "
                "make the segment on the CPU and move it with to()."
            )

    def _check_values(self, where: str) -> None:
        weights = self.weights.detach().double().numpy()
        good = (weights >= 0) & (weights < math.inf)
        if not good.all():
            raise ValueError(f"{where}: a weight is {weights[~good][0]}; weights are finite and 0 or more.")
        if weights[-1] != 0:
            raise ValueError(
                f"{where}: the last position has weight {weights[-1]}, but no token follows it; "
                "targets are aligned with the logits: targets[t] is what position t predicts."
            )
        total = float(weights.sum())
        if not math.isclose(total, self.weight_sum, rel_tol=1e-5, abs_tol=1e-9):
            raise ValueError(
                f"{where}: weight_sum is {self.weight_sum}, but the weights sum to {total}. "
                "It is the segment's share of the loss's denominator; change both together."
            )
        supervised = weights.nonzero()[0]
        if SUPERVISED not in self.indices:
            object.__setattr__(self, "indices", {**self.indices, SUPERVISED: torch.from_numpy(supervised)})
        for name, positions in self.indices.items():
            values = positions.numpy()
            outside = values[(values < 0) | (values >= len(weights))]
            if len(outside):
                raise ValueError(
                    f"{where}: index field {name!r} holds position {outside[0]}, but the segment has {len(weights)} "
                    "tokens."
                )
        given = self.indices[SUPERVISED].numpy()
        if not np.array_equal(given, supervised):
            raise ValueError(
                f"{where}: index field {SUPERVISED!r} holds {len(given)} positions, but they are not the "
                f"{len(supervised)} whose weight is not 0; leave it out, it is found from the weights."
            )

    @property
    def encoded_len(self) -> int:
        """Returns the number of tokens, from the tensor's shape; does not synchronise the device."""
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
        images: tuple[Image, ...] = (),
    ) -> Segment:
        """
        Builds a segment on the CPU from host lists.

        Args:
            input_ids (`Sequence[int]`):
                The tokens the model reads; at least one.
            targets (`Sequence[int]`):
                As many as `input_ids`; a target whose weight is 0 is never read.
            weights (`Sequence[float]`):
                As many as `input_ids`; none is negative, and the last is 0, because no token follows it.
            indices (`Mapping[str, Sequence[int]]`, *optional*):
                Further named positions; `"supervised"` is found from the weights.
            sample_id (`str`, *optional*):
                The sample of the segment.
            images (`tuple[Image, ...]`, *optional*):
                The images of its tokens; the trainer adds a sample's own when its target builder does not.

        Raises:
            `ValueError`: lengths differ, a weight is negative, the last position is supervised, or an index
                lies outside the segment.
        """
        further = {name: list(positions) for name, positions in (indices or {}).items() if name != SUPERVISED}
        return cls(
            input_ids=torch.tensor(input_ids, dtype=torch.int64),
            targets=torch.tensor(targets, dtype=torch.int64),
            weights=torch.tensor(weights, dtype=torch.float32),
            indices={name: torch.tensor(positions, dtype=torch.int64) for name, positions in further.items()},
            weight_sum=float(sum(weights)),
            sample_id=sample_id,
            images=images,
        )

    def to(self, device: torch.device | str) -> Segment:
        """Returns the segment with its tensors on `device`; length and weight stay known on the host."""
        if self.input_ids.device == torch.device(device):
            return self
        return Segment(
            input_ids=self.input_ids.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            indices={name: p.to(device, non_blocking=True) for name, p in self.indices.items()},
            weight_sum=self.weight_sum,
            sample_id=self.sample_id,
            images=self.images,
        )


def _size(values: Tensor) -> str:
    return " x ".join(map(str, values.shape))


def pack_of(segments: Sequence[Segment]) -> Pack[Segment]:
    """Makes one pack of segments that need no schedule; its `packing_length` is the sum of their lengths."""
    layout = PackLayout.from_lengths([s.encoded_len for s in segments])
    return Pack(tuple(segments), tuple(range(len(segments))), layout, max(1, layout.total))
