"""Schedules scope `global`: levels the windows of all ranks by moving few segments, then plans each rank's packs.

    lengths of all ranks, in one collective -> the same plan on every rank -> moved segments change ranks -> packs

Nothing that a clock measures enters the plan, and nothing is carried, so a resumed run repeats every decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from packsched import (
    FillStats,
    InfeasibleWindowError,
    OversizedSegmentError,
    Pack,
    PackingError,
    PackLayout,
    RanksPlan,
    UndecidedWindowError,
    plan_ranks,
)
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.inputs.segment import Segment
from rollout_sft.ranks.distributed import entangled, together
from rollout_sft.ranks.exchange import Parcel, exchange
from rollout_sft.reporting.metrics import Counters, Ratios
from rollout_sft.reporting.stopwatch import phase
from rollout_sft.step.pack_times import PackSums, PackTimes
from rollout_sft.step.packing_errors import in_yaml_terms
from rollout_sft.step.scheduled_window import ScheduledWindow, more_micro_steps


@dataclass(frozen=True)
class _Offer:
    """What a rank tells the others: its segments' tokens, costs and bytes, and how long its packs took before."""

    lens: list[int]
    costs: list[int]
    sizes: list[int]
    measured: PackSums


class GlobalSchedule:
    """
    Schedules scope `global`; every rank calls it at the same point.

    Args:
        config (`RolloutSFTConfig`):
            Gives the packing length, the objective, and this process's rank.
        cost (`Callable[[Segment], int]`):
            What a segment costs; ranks are levelled by it.
        times ([`~rollout_sft.step.pack_times.PackTimes`]):
            Measures the packs, to report how well the costs predict the time. It decides nothing.
    """

    def __init__(self, config: RolloutSFTConfig, cost: Callable[[Segment], int], times: PackTimes):
        self._config = config
        self._cost = cost
        self._times = times
        self._measured = PackSums()
        self._last_costs: tuple[int, ...] = ()
        self.waiting: list[Segment] = []

    def schedule(self, micro_batches: Sequence[Sequence[Segment]], micro_steps: int) -> ScheduledWindow:
        """Returns the packs of this rank's part of the global window, the empty ones last."""
        own = [segment for segments in micro_batches for segment in segments]
        parcels, offers = together(lambda: self._parcels(own), share=lambda made: self._offer(own, made))
        ratios = Ratios()
        ratios.add(self._check_costs([offer.measured for offer in offers]))
        with entangled():
            # A plan that cannot be made is refused by every rank, from the same numbers; any other failure is one
            # rank's alone, and the others wait for its segments.
            planned = self._plan(offers, micro_steps)
            if isinstance(planned, RanksPlan):
                with phase("exchange"):
                    here = self._exchange(own, parcels, planned, [offer.sizes for offer in offers])
        if isinstance(planned, PackingError):
            raise planned
        self._last_costs = planned.costs
        rank = self._config.process_index
        kept = {segment for from_rank, segment in planned.segments[rank] if from_rank == rank}
        plan = planned.plans[rank]
        packs = [_pack(here, indices, self._config.packing_length) for indices in plan.packs]
        fill = FillStats.from_packs(
            plan.pack_lens, self._config.packing_length, segments=len(here), lower_bound=plan.lower_bound
        )
        ratios.add(
            {
                "balance/cost_max_over_mean": (planned.straggler, 1.0),
                "balance/tokens_moved": (float(planned.moved_tokens), 1.0),
            }
        )
        return ScheduledWindow(
            packs=packs,
            fill=fill,
            counters=ratios.pairs(),
            given=[segment for at, segment in enumerate(own) if at not in kept],
            received=here[len(kept) :],
        )

    def _parcels(self, own: Sequence[Segment]) -> list[Parcel]:
        for index, segment in enumerate(own):
            if segment.encoded_len > self._config.packing_length:
                with in_yaml_terms(segment.sample_id):
                    raise OversizedSegmentError(
                        index=index, encoded_len=segment.encoded_len, packing_length=self._config.packing_length
                    )
        return [Parcel.of(segment) for segment in own]

    def _offer(self, own: Sequence[Segment], parcels: Sequence[Parcel]) -> _Offer:
        return _Offer(
            lens=[segment.encoded_len for segment in own],
            costs=list(map(self._cost, own)),
            sizes=[parcel.size for parcel in parcels],
            measured=self._times.take(self._cost),
        )

    def _check_costs(self, measured: Sequence[PackSums]) -> Counters:
        """Compares the last window's costs with the times of its packs; empty where none were measured."""
        counters: Counters = {}
        self._measured = sum(measured, self._measured)
        fitted = self._measured.pair_over_token()
        if fitted is not None:
            counters["balance/fitted_pair_over_token"] = (fitted, 1.0)
        if self._last_costs and all(sums.cost for sums in measured):
            seconds = [cost * m.seconds / m.cost for cost, m in zip(self._last_costs, measured, strict=True)]
            predicted = max(self._last_costs) / sum(self._last_costs)
            counters["balance/predicted_over_measured"] = (predicted * sum(seconds) / max(seconds), 1.0)
        return counters

    def _plan(self, offers: Sequence[_Offer], micro_steps: int) -> RanksPlan | PackingError:
        """Plans as many micro-steps as it takes where more are allowed; see [`more_micro_steps`]."""
        lens = [offer.lens for offer in offers]
        tokens = -(-sum(map(sum, lens)) // len(lens))
        while True:
            try:
                with in_yaml_terms(ranks=len(lens)):
                    return plan_ranks(
                        lens,
                        self._config.packing_length,
                        micro_steps,
                        cost=[offer.costs for offer in offers],
                        objective=self._config.pack_objective,
                    )
            except (InfeasibleWindowError, UndecidedWindowError) as error:
                more = more_micro_steps(self._config, micro_steps, tokens)
                if more is None:
                    return error
                micro_steps = more

    def _exchange(
        self, own: Sequence[Segment], parcels: Sequence[Parcel], plan: RanksPlan, sizes: Sequence[Sequence[int]]
    ) -> list[Segment]:
        """Sends what moves away and returns what this rank has then, in the order of the plan."""
        rank = self._config.process_index
        outgoing: dict[int, list[Parcel]] = {}
        incoming: dict[int, list[int]] = {}
        for segment, from_rank, to_rank in plan.moves:
            if from_rank == rank:
                outgoing.setdefault(to_rank, []).append(parcels[segment])
            elif to_rank == rank:
                incoming.setdefault(from_rank, []).append(sizes[from_rank][segment])
        received = exchange(Segment, outgoing, incoming)
        kept = [own[segment] for from_rank, segment in plan.segments[rank] if from_rank == rank]
        return kept + [segment for _, segments in sorted(received.items()) for segment in segments]


def _pack(segments: Sequence[Segment], indices: tuple[int, ...], packing_length: int) -> Pack[Segment]:
    chosen = tuple(segments[index] for index in indices)
    layout = PackLayout.from_lengths([segment.encoded_len for segment in chosen])
    assert layout.tokens <= packing_length, (layout, packing_length)
    return Pack(chosen, indices, layout, packing_length)
