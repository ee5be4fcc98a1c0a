"""Computes how many tokens have to leave a rank at the very least, with which a plan can be compared."""

from collections.abc import Sequence
from itertools import accumulate

from packsched.planner.bounds import martello_toth_bound
from packsched.subset_sum import leave_out

# The costs of a rank are counted in so many parts where whole segments are added up.
_PARTS = 4096


def least_given(lens: Sequence[int], costs: Sequence[int], limit: int, packing_length: int, micro_steps: int) -> int:
    """Returns a lower bound of the tokens of its own that a rank has to give away, the strongest of three.

    - What it keeps holds at most the tokens of its packs.
    - What it keeps costs at most `limit`.
    - What it keeps fits into its packs; the bound of Martello and Toth says how many of the longest have to leave.
    """
    least = max(0, sum(lens) - packing_length * micro_steps)
    if sum(costs) > limit:
        least = max(least, _least_excess(lens, costs, sum(costs) - limit))
    longest_first = sorted(lens, reverse=True)
    gone = 0
    while martello_toth_bound(longest_first[gone:], packing_length) > micro_steps:
        gone += 1
    return max(least, sum(longest_first[len(lens) - gone :]))


def _least_excess(lens: Sequence[int], costs: Sequence[int], excess: int) -> int:
    """Returns a lower bound of the tokens of segments that cost at least `excess`.

    Whole segments rarely cost exactly the excess, so it is raised to the least that whole segments can cost. Then the
    segments with most cost a token leave, the last of them in part.
    """
    part = sum(costs) // _PARTS + 1
    in_parts = [-(-cost // part) for cost in costs]
    gone = leave_out(in_parts, -(-excess // part), sum(in_parts))
    assert gone is not None
    # Rounding up makes each segment look dearer by less than a part.
    excess = max(excess, part * (sum(in_parts[at] for at in gone) - len(costs)))
    dearest = sorted(range(len(lens)), key=lambda at: (-costs[at] / lens[at], lens[at]))
    spent = list(accumulate((costs[at] for at in dearest), initial=0))
    whole = next(k for k in range(len(spent)) if spent[k] >= excess) - 1
    divided = dearest[whole]
    return sum(lens[at] for at in dearest[:whole]) + -(-(excess - spent[whole]) * lens[divided] // costs[divided])
