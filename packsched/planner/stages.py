"""The cascade that answers one question: do these segments fit into that many packs?

Cheap stages first. Every stage lives in its own module and can be taken out of `fit` in one edit.
"""

from collections.abc import Sequence
from contextlib import suppress
from math import ceil, isqrt

from packsched.planner.bin_completion import OutOfNodesError, bin_completion
from packsched.planner.bin_slack import ALLOWANCES, minimum_bin_slack, shuffled_bin_slack
from packsched.planner.exact_cover import cover_after_setting_aside, cover_by_fours, exact_cover
from packsched.planner.ruin_and_recreate import ruin_and_recreate

Packs = list[list[int]]

# Beyond this many segments filling pack by pack, which is quadratic, costs more than it gains.
MOST_SEGMENTS = 4096
# The bitsets of one subset sum, in bits: more packing length than this is not searched. 2^24 tokens with 4096 segments.
_MOST_BITS = 1 << 30

# Work at effort 1, in steps that are counted, not timed.
_SHUFFLES = 8
_COMPLETION_NODES = 6_000
_COVER_NODES = 1_000
_FOURS_NODES = 3_000
_COVER_TRIES = 8
_COVER_SEGMENTS_A_PACK = 4
_ROUNDS = 2_000


def fit(lengths: Sequence[int], packing_length: int, packs: int, effort: float) -> Packs | None:
    """At most `packs` packs of positions in `lengths` (longest first), or None: proven that they do not fit.

    Cost: about a millisecond when filling succeeds, which it nearly always does; otherwise a few hundred at effort 1
    and packing lengths up to 16384, however many segments.

    Raises:
        OutOfNodesError: neither found nor refuted within `effort` times the usual work, or not `searchable`.
    """
    slack = packs * packing_length - sum(lengths)
    if slack < 0:
        return None
    if not searchable(lengths, packing_length):
        raise OutOfNodesError
    shuffles = ceil(_SHUFFLES * effort) if slack < packs else 0
    if lengths[0] < 2 * lengths[-1]:  # alike, so that longest first would get stuck at the end
        found = shuffled_bin_slack(lengths, packing_length, packs, shuffles)
        shuffles = 0
        if found is not None:
            return found
    best, least_left = fill(lengths, packing_length, packs)
    if not least_left:
        return best
    found = shuffled_bin_slack(lengths, packing_length, packs, shuffles)
    if found is not None:
        return found
    if slack == 0 and len(lengths) <= _COVER_SEGMENTS_A_PACK * packs:
        nodes = int(_COVER_NODES * effort)
        with suppress(OutOfNodesError):
            found = cover_by_fours(lengths, packing_length, int(_FOURS_NODES * effort))
            if found is not None:
                return found
        with suppress(OutOfNodesError):
            return exact_cover(lengths, packing_length, nodes)
        found = cover_after_setting_aside(lengths, packing_length, packs, int(_COVER_TRIES * effort), nodes)
        if found is not None:
            return found
    try:
        return bin_completion(lengths, packing_length, packs, int(_COMPLETION_NODES * effort))
    except OutOfNodesError:
        found = ruin_and_recreate(lengths, packing_length, best, least_left, int(_ROUNDS * effort))
        if found is None:
            raise
        return found


def searchable(lengths: Sequence[int], packing_length: int) -> bool:
    """Whether the searches are worth their time and memory: not too many segments, nor too long a pack."""
    return len(lengths) <= MOST_SEGMENTS and packing_length * (isqrt(len(lengths)) + 1) <= _MOST_BITS


def fill(lengths: Sequence[int], packing_length: int, packs: int) -> tuple[Packs, list[int]]:
    """The best of filling pack by pack with every allowance: the packs, and the positions left over."""
    best: Packs = []
    least_left, least_tokens = list(range(len(lengths))), sum(lengths) + 1
    slack = packs * packing_length - sum(lengths)
    for allowance in ALLOWANCES[:1] if slack == 0 else ALLOWANCES:
        filled, left = minimum_bin_slack(lengths, packing_length, packs, allowance)
        tokens = sum(lengths[position] for position in left)
        if tokens < least_tokens:
            best, least_left, least_tokens = filled, left, tokens
        if not left:
            break
    return best, least_left
