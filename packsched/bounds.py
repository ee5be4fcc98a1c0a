"""Lower bounds on the number of packs: what turns "no plan found" into "there is none".

Every bound takes the lengths longest first and returns a number of packs that no plan can go below. All of
them are integer arithmetic.
"""


def volume_bound(lengths: list[int], packing_length: int) -> int:
    """All tokens over the tokens of one pack, rounded up. `O(n)`."""
    return -(-sum(lengths) // packing_length)


def martello_toth_bound(lengths: list[int], packing_length: int) -> int:
    """Bound L2: for a threshold k, segments longer than `packing_length - k` share with none of length >= k.

    Segments over half a pack need one pack each; the room left beside those of at most `packing_length - k`
    must hold the medium ones. The best threshold counts. `O(n)` after sorting.

    Source: S. Martello and P. Toth, "Lower bounds and reduction procedures for the bin packing problem",
    Discrete Applied Mathematics 28 (1990), equation for L2.
    """
    half = packing_length // 2
    n_large = sum(1 for length in lengths if length > half)
    medium = lengths[n_large:]
    best = n_large
    # Walk the threshold down through the medium lengths; `alone` segments then exceed packing_length - k.
    beside_sum = 0
    first_beside = n_large  # large segments [first_beside:n_large] may share
    medium_sum = 0
    for at, threshold in enumerate(medium):
        medium_sum += threshold
        if at + 1 < len(medium) and medium[at + 1] == threshold:
            continue
        while first_beside > 0 and lengths[first_beside - 1] <= packing_length - threshold:
            first_beside -= 1
            beside_sum += lengths[first_beside]
        room_beside = (n_large - first_beside) * packing_length - beside_sum
        if medium_sum > room_beside:
            best = max(best, n_large - (-(medium_sum - room_beside) // packing_length))
    return best


def lower_bound(lengths: list[int], packing_length: int) -> tuple[int, str]:
    """The best of the bounds and the name of the one that gives it."""
    bounds = [
        (volume_bound(lengths, packing_length), "volume"),
        (martello_toth_bound(lengths, packing_length), "Martello-Toth L2"),
    ]
    return max(bounds, key=lambda bound: bound[0])
