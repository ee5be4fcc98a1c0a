"""Holds one rank's window: while it is built, and built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from packsched import Pack
from rollout_sft.data.samples import MicroBatch
from rollout_sft.inputs.segment import Segment
from rollout_sft.reporting.metrics import Ratios, WindowReport
from rollout_sft.step.asked import AskedRollouts
from rollout_sft.step.collate import PackedBatch

Place = tuple[int, int]
"""A sample of a window: its micro-batch, and its index in there."""


@dataclass(frozen=True, kw_only=True)
class BuiltWindow:
    """
    Holds one rank's window, packed and collated, as far as its rollouts are known.

    Args:
        due (`list[Segment]`):
            The segments that this rank has to train: those that waited before the window and those that it built,
            without those that wait now, and in scope `global` with those that it got for those that it gave away.
        micro_steps (`int`):
            How many micro-steps of those that the Trainer counts are left for `batches`.
        batches (`list[PackedBatch]`):
            One per micro-step; an idle micro-step has the dummy. There are more where the window did not fit. Before
            the last wave: the packs that may be trained now, the fullest first, fewer than `micro_steps`.
        dummy (`PackedBatch`):
            What a forward without segments runs.
        report (`WindowReport`):
            What the other ranks and the log need to know about the window.
        early (`list[Pack[Segment]]`, *optional*):
            The packs that were trained before the last wave.
        is_last (`bool`, *optional*, defaults to `True`):
            Whether the window is complete.
    """

    due: list[Segment]
    micro_steps: int
    batches: list[PackedBatch]
    dummy: PackedBatch
    report: WindowReport
    early: list[Pack[Segment]] = field(default_factory=list)
    is_last: bool = True

    @property
    def pack_lens(self) -> list[list[int]]:
        """Returns, for each pack of a complete window, the lengths of its segments."""
        return [list(pack.layout.encoded_lens) for pack in (*self.early, *(batch.pack for batch in self.batches))]


@dataclass(kw_only=True)
class OpenWindow:
    """
    Holds what is known of a window while it is built.

    Args:
        where (`str`):
            Names the step and the rank, for messages.
        micro_batches (`list[MicroBatch]`):
            The window's data.
        micro_steps (`int`):
            How many the Trainer counts.
        cuts (`list[int | None]`):
            The longest response of each wave to come; None for the last one.
        on_reference (`list[Place]`):
            Samples that are trained on their reference answer and not built yet.
        asked_for (`list[Place]`):
            The samples of the requests.
        asked ([`~rollout_sft.step.asked.AskedRollouts`]):
            Their rollouts.

    Attributes:
        ratios (`Ratios`):
            What was counted so far.
        waiting (`dict[Place, Segment]`):
            Segments without a pack.
        early (`list[Pack[Segment]]`):
            Packs that were trained before the last wave.
        waves (`int`):
            How many waves were built.
        response_lens (`list[int]`):
            The lengths of the responses so far.
    """

    where: str
    micro_batches: list[MicroBatch]
    micro_steps: int
    cuts: list[int | None]
    on_reference: list[Place]
    asked_for: list[Place]
    asked: AskedRollouts
    ratios: Ratios = field(default_factory=Ratios)
    waiting: dict[Place, Segment] = field(default_factory=dict)
    early: list[Pack[Segment]] = field(default_factory=list)
    waves: int = 0
    response_lens: list[int] = field(default_factory=list)

    def rows(self) -> list[list[Segment]]:
        """Returns the waiting segments of each micro-batch, in the order of the samples."""
        places = sorted(self.waiting)
        return [[self.waiting[p] for p in places if p[0] == row] for row in range(len(self.micro_batches))]

    def train(self, packs: Sequence[Pack[Segment]]) -> None:
        """Moves the segments of packs that are trained now out of the waiting ones."""
        trained = {id(segment) for pack in packs for segment in pack.segments}
        self.waiting = {place: s for place, s in self.waiting.items() if id(s) not in trained}
        self.early += packs
