"""What a user would take instead of packsched. Every window peer returns packs of lengths for (lengths, cap, packs).

Peers that pack into as few packs as they can ignore `packs`; peers that level ignore the cap. A peer that is not
installed is left out of the tables, and the results say so.
"""

import heapq
from collections.abc import Callable

from packsched import select

Peer = Callable[[list[int], int, int], list[list[int]]]


def first_fit_decreasing(lengths: list[int], cap: int, packs: int) -> list[list[int]]:
    """FFD over a tournament tree of rooms, `O(n log n)`."""
    size = 1
    while size < len(lengths):
        size *= 2
    tree = [cap] * (2 * size)  # the largest room below each node
    filled: list[list[int]] = [[] for _ in range(size)]
    for length in sorted(lengths, reverse=True):
        node = 1
        while node < size:
            node = 2 * node if tree[2 * node] >= length else 2 * node + 1
        filled[node - size].append(length)
        tree[node] -= length
        while node > 1:
            node //= 2
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
    return [pack for pack in filled if pack]


def binpacking_constant_volume(lengths: list[int], cap: int, packs: int) -> list[list[int]]:
    import binpacking

    return binpacking.to_constant_volume(lengths, cap)


def requirement_rule_iterated(lengths: list[int], cap: int, packs: int) -> list[list[int]]:
    """The seed rule (policy `binpacking`) until the buffer is empty."""
    left, filled = list(lengths), []
    while left:
        chosen = set(select(left, cap, policy="binpacking"))
        filled.append([left[at] for at in chosen])
        left = [length for at, length in enumerate(left) if at not in chosen]
    return filled


def largest_to_least_loaded(lengths: list[int], cap: int, packs: int) -> list[list[int]]:
    """LPT: level, without any cap."""
    heap = [(0, at, []) for at in range(packs)]
    for length in sorted(lengths, reverse=True):
        load, at, pack = heap[0]
        pack.append(length)
        heapq.heapreplace(heap, (load + length, at, pack))
    return [pack for _, _, pack in heap]


def karmarkar_karp(lengths: list[int], cap: int, packs: int) -> list[list[int]]:
    """The largest differencing method for several packs: level, without any cap."""
    heap = []
    for at, length in enumerate(lengths):
        loads = [0] * (packs - 1) + [length]
        heap.append((-length, at, loads, [[] for _ in range(packs - 1)] + [[length]]))
    heapq.heapify(heap)
    while len(heap) > 1:
        _, at, loads, filled = heapq.heappop(heap)
        _, _, other_loads, other = heapq.heappop(heap)
        merged = sorted(
            (
                (a + b, k, x + y)
                for k, (a, b, x, y) in enumerate(
                    zip(loads, reversed(other_loads), filled, reversed(other), strict=True)
                )
            ),
            key=lambda one: one[:2],
        )
        least = merged[0][0]
        heapq.heappush(
            heap, (least - merged[-1][0], at, [one[0] - least for one in merged], [one[2] for one in merged])
        )
    return heap[0][3] if heap else []


def trl_bfd(lengths: list[int], cap: int, packs: int) -> list[list[int]]:
    import trl
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()

    trl_bfd.data = getattr(trl_bfd, "data", {})
    key = tuple(lengths)
    if key not in trl_bfd.data:  # building the data set is not the packer's time: the warm-up call pays it
        trl_bfd.data = {key: Dataset.from_dict({"input_ids": [[0] * length for length in lengths]})}
    packed = trl.pack_dataset(trl_bfd.data[key], seq_length=cap, strategy="bfd")
    return [list(row) for row in packed["seq_lengths"]]


def prtpy_ffd(lengths: list[int], cap: int, packs: int) -> list[list[int]]:
    import prtpy

    return prtpy.pack(algorithm=prtpy.packing.first_fit_decreasing, binsize=cap, items=lengths)


def cp_sat(lengths: list[int], cap: int, packs: int, seconds: float = 10.0) -> bool | None:
    """The exact referee: True (fits), False (proven not to), None (undecided within the time)."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    lengths = sorted(lengths, reverse=True)
    inside = [[model.new_bool_var("") for _ in range(min(at + 1, packs))] for at in range(len(lengths))]
    for row in inside:
        model.add_exactly_one(row)
    for pack in range(packs):
        model.add(
            sum(length * row[pack] for length, row in zip(lengths, inside, strict=True) if pack < len(row)) <= cap
        )
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 2
    status = solver.solve(model)
    return {cp_model.OPTIMAL: True, cp_model.FEASIBLE: True, cp_model.INFEASIBLE: False}.get(status)


WINDOW_PEERS: dict[str, Peer] = {
    "FFD (textbook)": first_fit_decreasing,
    "binpacking 2.0 to_constant_volume": binpacking_constant_volume,
    "requirement's rule iterated": requirement_rule_iterated,
    "TRL pack_dataset (bfd)": trl_bfd,
    "prtpy first_fit_decreasing": prtpy_ffd,
}
LEVEL_PEERS: dict[str, Peer] = {"LPT": largest_to_least_loaded, "Karmarkar-Karp": karmarkar_karp}


def is_available(peer: Peer) -> bool:
    """Whether the peer's package is installed."""
    try:
        peer([3, 2, 1], 4, 2)
    except ImportError:
        return False
    return True
