"""Finds the fewest tokens that any plan of a small, nearly full window moves, and compares `plan_ranks` with it.

In a nearly full window a pack can waste no more than the tokens that all packs together have free. So all packs that
can occur are listed (every subset of the segments with such a sum), and a search covers the segments with them, pack by
pack, each given to one rank. It ends with the least that moves, or with the proof that no plan exists.

`least_moved_tokens`, the bound that plans are compared with, does not know how segments share packs. The table shows
how often three times this bound cannot be reached by any plan.
"""

import statistics
from collections.abc import Sequence

import numpy as np

from benchmarks.packsched.measure import table
from benchmarks.packsched.ranks import draw
from packsched import PackingError, plan_ranks
from packsched.balancing.given import GivenWindow
from packsched.costs import DEFAULT_COST

CAP = 14000
FILLS = (0.985, 0.99, 0.995, 0.999)
SHAPES = ((2, 8, 2, 60, FILLS), (2, 12, 3, 6, FILLS[-1:]))
"""Ranks, segments and packs of each, windows, and fills. Larger windows take minutes unless they are very full."""
MOST_COST = 1030
"""The straggler that is allowed, in thousandths of the mean."""


class OutOfNodesError(Exception):
    """Raised when the search gave up, so that nothing is proven."""


def least_moved(
    lens: Sequence[Sequence[int]], packing_length: int, micro_steps: int, most_cost: int, nodes: int = 60_000
) -> int | None:
    """Returns the fewest tokens that a plan moves; None is the proof that there is no plan.

    Args:
        lens: For each rank the tokens of its segments, up to 24 in all.
        packing_length: The cap of a pack.
        micro_steps: Packs of each rank.
        most_cost: The most that a rank may cost.
        nodes: Ends the search after this many steps.
    """
    return _Search(lens, packing_length, micro_steps, most_cost, nodes).least


class _Search:
    def __init__(
        self, lens: Sequence[Sequence[int]], packing_length: int, micro_steps: int, most_cost: int, nodes: int
    ) -> None:
        flat = np.array([length for rank in lens for length in rank], dtype=np.int64)
        home = np.repeat(np.arange(len(lens)), [len(rank) for rank in lens])
        self.most_cost, self.nodes = most_cost, nodes
        self.least: int | None = None
        slack = len(lens) * micro_steps * packing_length - int(flat.sum())
        sums = np.zeros(1, np.int32)
        for length in flat:
            sums = np.concatenate([sums, sums + np.int32(length)])
        self.packs = np.flatnonzero((sums <= packing_length) & (sums >= packing_length - slack))
        self.everything = len(sums) - 1
        inside = self.packs[:, None] >> np.arange(len(flat)) & 1
        self.waste = packing_length - inside @ flat
        self.cost = inside @ np.array([DEFAULT_COST(length) for length in flat.tolist()])
        self.moved = np.stack([inside @ np.where(home == rank, 0, flat) for rank in range(len(lens))], axis=1)
        if slack >= 0:
            self._cover(np.arange(len(self.packs)), 0, [micro_steps] * len(lens), [0] * len(lens), 0, slack)

    def _cover(
        self, packs: np.ndarray, covered: int, left: list[int], spent: list[int], moved: int, slack: int
    ) -> None:
        """Puts the first segment that has no pack into each pack that it can have, the fewest moved tokens first."""
        self.nodes -= 1
        if self.nodes < 0:
            raise OutOfNodesError
        if covered == self.everything:
            self.least = moved
            return
        first = ~covered & -~covered
        packs = packs[((self.packs[packs] & covered) == 0) & (self.waste[packs] <= slack)]
        holds = (self.packs[packs] & first) != 0
        ways = [
            (int(self.moved[pack, rank]), int(pack), rank)
            for rank in range(len(left))
            if left[rank]
            for pack in packs[holds]
            if spent[rank] + self.cost[pack] <= self.most_cost
        ]
        for tokens, pack, rank in sorted(ways):
            if self.least is not None and moved + tokens >= self.least:
                break
            left[rank] -= 1
            spent[rank] += int(self.cost[pack])
            rest = slack - int(self.waste[pack])
            self._cover(packs[~holds], covered | int(self.packs[pack]), left, spent, moved + tokens, rest)
            left[rank] += 1
            spent[rank] -= int(self.cost[pack])


def nearly_full() -> str:
    """Returns a Markdown table: one line for each shape and fill."""
    lines = []
    for ranks, segments, packs, windows, fills in SHAPES:
        for fill in fills:
            rows = [_row(seed, ranks, segments, packs, fill) for seed in range(windows)]
            found = [row for row in rows if row is not None]
            undecided = sum(row == () for row in found)
            least, moved = zip(*[row for row in found if row], strict=True)
            lines.append(
                [
                    f"{ranks} ranks of {segments} in {packs} packs, {fill:.1%} full",
                    f"{len(least)} of {windows}" + (f", {undecided} undecided" if undecided else ""),
                    f"{statistics.median(least):.1f} ({max(least):.0f})",
                    f"{sum(one > 3 for one in least)}",
                    f"{statistics.median(moved):.2f} ({max(moved):.1f})",
                ]
            )
    return table(
        [
            "window",
            "have a plan, and move",
            "fewest that can move / `least_moved_tokens`: median (most)",
            "windows where it is over 3",
            "`plan_ranks` / fewest that can move: median (most)",
        ],
        lines,
    )


def _row(seed: int, ranks: int, segments: int, packs: int, fill: float) -> tuple[float, ...] | None:
    """Returns the fewest over the bound, and the plan's over the fewest; () is undecided, None has nothing to show."""
    lens = draw(seed, ranks, segments, fill, packs)
    costs = [list(map(DEFAULT_COST, rank)) for rank in lens]
    most = sum(map(sum, costs)) * MOST_COST // (1000 * ranks)
    try:
        fewest = least_moved(lens, CAP, packs, most)
    except OutOfNodesError:
        return ()
    bound = GivenWindow(lens, costs, None, CAP).least_given(range(ranks), most, packs)
    if not fewest or not bound:
        return None
    try:
        return fewest / bound, plan_ranks(lens, CAP, packs).moved_tokens / fewest
    except PackingError:
        return fewest / bound, float("inf")


if __name__ == "__main__":
    print(nearly_full())
