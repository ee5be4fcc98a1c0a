"""Plans the dense objective: as few non-empty packs as possible."""

from packsched.planner.bounds import volume_bound
from packsched.planner.levelling import longest_pack, shortest_longest_pack
from packsched.planner.stages import Packs, Proof, SortedWindow, fit

# How much of the usual work goes into fewer packs when more packs are allowed.
_EXTRA_EFFORT = 0.1
# Packs times segments: in a larger window every question takes up to a tenth of a second, in a much larger one longer.
_MOST_ASKED_ONE_BY_ONE, _MOST_ASKED_OFTEN = 1 << 17, 1 << 19


def fewest_packs(window: SortedWindow, most: int | None, effort: float) -> tuple[Packs | None, Proof, bool]:
    """Asks for one more pack until the segments fit, beginning with as many as hold all tokens.

    Large windows that are searched get one pack more, then two, four, ...; the largest one, four, sixteen, ...

    Args:
        window: The lengths and the cap.
        most: How many packs are allowed; None allows any number.
        effort: Multiplies the counted work.

    Returns:
        The packs (None: none found), the best lower bound with its proof, and whether no plan has fewer packs.
    """
    proof = Proof(volume_bound(window.lengths, window.packing_length), "volume")
    packs = proof.packs if most is None else min(proof.packs, most)
    step = 1
    while True:
        answer = fit(window, packs, effort if packs == most else _EXTRA_EFFORT * effort)
        if isinstance(answer, Proof):
            proof = answer
            if most is not None and proof.packs > most:
                return None, proof, False
            packs = proof.packs
        elif answer is not None:
            return answer, proof, len(answer) == proof.packs
        elif packs == most:
            # What objective `balanced` places, this one places too.
            level, _ = shortest_longest_pack(window, most, effort)
            if longest_pack(window.lengths, level) > window.packing_length:
                return None, proof, False
            return level, proof, len(level) == proof.packs
        else:
            packs += step
            if window.searchable and packs * len(window.lengths) > _MOST_ASKED_ONE_BY_ONE:
                step *= 2 if packs * len(window.lengths) <= _MOST_ASKED_OFTEN else 4
            if most is not None:
                packs = min(packs, most)
