"""Ruin and recreate: seeded restarts that keep what is good.

A random handful of packs is emptied, and together with the segments that found no place so far they are filled
again, each as full as possible, in a randomly disturbed order of length. The new packs stay if no more tokens are
left over than before; equal counts, which let the search wander, stay too.
"""

from collections.abc import Sequence

from packsched.planner.random_integers import Integers
from packsched.subset_sum import fill_room

# A round with so many segments is one; the work grows with their square.
_FREE_SEGMENTS = 128


def ruin_and_recreate(
    lengths: Sequence[int], packing_length: int, filled: list[list[int]], left: list[int], rounds: int
) -> list[list[int]] | None:
    """As many packs as `filled` that hold `left` as well, or None: not found. Positions in `lengths`.

    Cost: `rounds` times filling some ten packs, about 0.1 ms each. Rounds with more than `_FREE_SEGMENTS` segments
    (or a longer pack than 2^16 tokens) cost more and count as many.

    Source: G. Schrimpf et al., "Record breaking optimization results using the ruin and recreate principle",
    Journal of Computational Physics 159 (2000).
    """
    filled = list(filled)
    draw = Integers(len(lengths))
    left_over = sum(lengths[position] for position in left)
    attempt = -1
    while rounds > 0:
        attempt += 1
        emptied = draw.sample(len(filled), min(len(filled), 6 + draw.below(4 + 4 * (attempt % 2))))
        pool = left + [position for pack in emptied for position in filled[pack]]
        rounds -= max(1, len(pool) * len(pool) * ((packing_length >> 16) + 1) // _FREE_SEGMENTS**2)
        spare = len(emptied) * packing_length + left_over - sum(lengths[position] for position in pool)
        keyed = sorted([(lengths[at] * (draw.below(2048) + 1), at) for at in pool], reverse=True)
        pool = [position for _, position in keyed]
        recreated: list[list[int]] = []
        while len(recreated) < len(emptied):
            # Every second round spreads the waste instead of filling exactly.
            enough = spare // (2 * (len(emptied) - len(recreated))) if attempt % 2 else 0
            chosen = fill_room([lengths[position] for position in pool], packing_length, enough)
            pack = [pool[at] for at in chosen]
            spare -= packing_length - sum(lengths[position] for position in pack)
            if spare < 0:
                break
            recreated.append(pack)
            for at in reversed(chosen):
                del pool[at]
        else:
            for number, pack in zip(emptied, recreated, strict=True):
                filled[number] = pack
            left = pool
            left_over = sum(lengths[position] for position in left)
            if not left:
                return filled
    return None
