"""Trains on the early responses of a window while long ones are still generated (`rollout_matching.rollout_waves`).

A wave is every response that is no longer than its cut ([`~rollout_sft.step.wave_cuts`]). Each wave is built and
planned together with what earlier waves left, and its full packs are trained at once; the rest waits inside the window.
The last wave closes the window with the ordinary plan, in the micro-steps that are left:

    GA 4   | wave 1: pack | wave 2: pack | wave 3, the last: pack | pack |

At least the last micro-step, which synchronises the gradients, runs after the window is closed. Before that each rank
trains as many packs as every other, so that no rank runs a dummy that it would not need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from packsched import FillStats, Pack, PackingError, WindowBuffer
from rollout_sft.inputs.segment import Segment
from rollout_sft.model.forward import Inputs
from rollout_sft.step.micro_steps import MicroStep
from rollout_sft.step.packing_errors import in_yaml_terms
from rollout_sft.step.scheduled_window import Schedule, ScheduledWindow
from rollout_sft.step.wave_cuts import FULL_ENOUGH


class LazyWindow:
    """
    Gives the Trainer the micro-steps of a window one by one, and waits for a wave only when it is needed.

    Args:
        micro_steps (`int`):
            How many there will be; the Trainer asks for the length before the first one runs.
        waves (`Iterator[list[MicroStep]]`):
            The micro-steps of each wave.
    """

    def __init__(self, micro_steps: int, waves: Iterator[list[MicroStep]]):
        self._micro_steps = micro_steps
        self._waves = waves

    def __len__(self) -> int:
        return self._micro_steps

    def __iter__(self) -> Iterator[Inputs]:
        given = 0
        for wave in self._waves:
            for micro_step in wave:
                given += 1
                yield micro_step.as_inputs()
        assert given == self._micro_steps, (given, self._micro_steps)


def full_packs(segments: Sequence[Segment], packing_length: int) -> list[Pack[Segment]]:
    """
    Plans the segments that are known so far, and picks the packs that need not wait for others.

    Args:
        segments (`Sequence[Segment]`):
            All segments that wait inside the window, in the order of the samples.
        packing_length (`int`):
            The most tokens of a pack.

    Returns:
        `list[Pack[Segment]]`: the packs that are full enough, the fullest first.
    """
    if not segments:
        return []
    window: WindowBuffer[Segment] = WindowBuffer(packing_length, len(segments))
    for segment in segments:
        with in_yaml_terms(segment.sample_id):
            window.add(segment, segment.encoded_len)
    packs = (pack for pack in window.take_packs() if pack.fill >= FULL_ENOUGH)
    return sorted(packs, key=lambda pack: -pack.layout.tokens)


def schedule_rest(
    schedule: Schedule, rest: list[list[Segment]], *, early: Sequence[Pack[Segment]], micro_steps: int
) -> ScheduledWindow:
    """
    Schedules the segments that no early pack holds.

    They may take more packs than there are micro-steps left, if the whole window would have fitted in one wave.

    Args:
        schedule (`Schedule`):
            The schedule of the scope.
        rest (`list[list[Segment]]`):
            The segments of each micro-batch that still wait.
        early (`Sequence[Pack]`):
            The packs that were trained before the window was closed.
        micro_steps (`int`):
            The micro-steps of the whole window.

    Returns:
        [`~rollout_sft.step.scheduled_window.ScheduledWindow`]: its packs hold `rest`, its fill is that of the whole
        window.

    Raises:
        `PackingError`: what one wave would have raised.
    """
    if not early:
        return schedule.schedule(rest, micro_steps)
    left = micro_steps - len(early)
    whole = [[segment for pack in early for segment in pack.segments], *rest]
    try:
        scheduled = schedule.schedule(rest, left)
    except PackingError:
        schedule.schedule(whole, micro_steps)  # raises as well, with the numbers of the whole window
        raise
    if len(scheduled.packs) > left:
        schedule.schedule(whole, micro_steps)
    packs = [*early, *scheduled.packs]
    fill = FillStats.from_packs(
        [pack.layout.tokens for pack in packs],
        packs[0].packing_length,
        segments=sum(len(pack.segments) for pack in packs),
    )
    return replace(scheduled, fill=fill)
