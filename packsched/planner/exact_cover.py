"""Exact cover: windows without any slack, where every pack must come out exactly full.

With three or four segments a pack there are only a few hundred ways to fill a pack exactly. List them all, then
choose ways that use every segment once, always branching on the segment with the fewest ways left: a segment
without any prunes the branch. Ways of at most four segments are found by pairs of pairs, without any search, so they
are tried first. Windows with more ways than can be listed are cut down: random exact packs are set aside until what
is left is small enough.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from packsched.planner.bin_completion import OutOfNodesError
from packsched.planner.random_integers import Integers
from packsched.subset_sum import fill_room

_MOST_WAYS = 4000
# Sums of pairs and bitsets of sums are kept for all of them: tens of megabytes at most.
_MOST_FOR_FOURS = 512
_MOST_BITS = 1 << 29
_STEPS_PER_WAY = 64


def exact_cover(lengths: Sequence[int], packing_length: int, nodes: int) -> list[list[int]] | None:
    """Exactly full packs of positions in `lengths` that hold them all, or None: proven that there are none.

    Cost: `O(n * packing_length / 64)` for the sums, then at most `nodes` choices of `O(ways)` each.

    Raises:
        OutOfNodesError: too many segments, too many ways to fill a pack, or `nodes` choices made.

    Source: D. E. Knuth, "Dancing links" (2000), algorithm X, on bitsets instead of links.
    """
    return _packs(_cover(len(lengths), _ways(lengths, packing_length), nodes), len(lengths))


def cover_by_fours(lengths: Sequence[int], packing_length: int, nodes: int) -> list[list[int]] | None:
    """Exactly full packs of one to four positions in `lengths` that hold them all, or None: there are none.

    None says nothing about packs of five segments or more. Cost: `O(n**2)` sums, then as `exact_cover`.

    Raises:
        OutOfNodesError: too many segments, too many ways to fill a pack, or `nodes` choices made.

    Source: the pairs of pairs are E. Horowitz and S. Sahni's two lists (1974).
    """
    return _packs(_cover(len(lengths), _ways_of_four(lengths, packing_length), nodes), len(lengths))


def cover_after_setting_aside(
    lengths: Sequence[int], packing_length: int, packs: int, tries: int, nodes: int
) -> list[list[int]] | None:
    """`packs` exactly full packs that hold all of `lengths` (longest first), or None: not found.

    Each of the `tries` sets random exact packs of the longest segments aside and covers the rest exactly.
    """
    draw = Integers(packs)
    for attempt in range(tries):
        kept = min(packs, 16 + attempt % 4)
        aside: list[list[int]] = []
        left = list(range(len(lengths)))
        while len(aside) < packs - kept:
            keyed = sorted((draw.below(1 << 20), position) for position in left[1:])
            order = [position for _, position in keyed]
            room = packing_length - lengths[left[0]]
            chosen = [order[at] for at in fill_room([lengths[at] for at in order], room)]
            if sum(lengths[at] for at in chosen) < room:
                break
            aside.append([left[0], *chosen])
            taken = {left[0], *chosen}
            left = [position for position in left if position not in taken]
        else:
            try:
                rest = exact_cover([lengths[at] for at in left], packing_length, nodes)
            except OutOfNodesError:
                rest = None
            if rest is not None:
                return aside + [[left[at] for at in pack] for pack in rest]
    return None


def _packs(chosen: list[int] | None, segments: int) -> list[list[int]] | None:
    if chosen is None:
        return None
    return [[at for at in range(segments) if way >> at & 1] for way in chosen]


def _ways_of_four(lengths: Sequence[int], packing_length: int) -> list[int]:
    """Every subset of at most four segments that fills a pack exactly, as a bitset of positions."""
    if len(lengths) > _MOST_FOR_FOURS:
        raise OutOfNodesError
    ways = [1 << at for at, length in enumerate(lengths) if length == packing_length]
    rest: defaultdict[int, list[int]] = defaultdict(list)  # sum -> one or two positions, all above `second`
    for second in range(len(lengths) - 1, 0, -1):
        for first in range(second):
            room = packing_length - lengths[first] - lengths[second]
            pair = 1 << first | 1 << second
            if room == 0:
                ways.append(pair)
            ways.extend(pair | other for other in rest.get(room, ()))
        if len(ways) > _MOST_WAYS:
            raise OutOfNodesError
        rest[lengths[second]].append(1 << second)
        for third in range(second + 1, len(lengths)):
            rest[lengths[second] + lengths[third]].append(1 << second | 1 << third)
    return ways


def _ways(lengths: Sequence[int], packing_length: int) -> list[int]:
    """Every subset that fills a pack exactly, as a bitset of positions."""
    if len(lengths) * packing_length > _MOST_BITS:
        raise OutOfNodesError
    fits = (1 << packing_length + 1) - 1
    size = packing_length // 8 + 1
    sums = 1
    reach = [sums.to_bytes(size, "little")]  # bit s of reach[k], as bytes: some subset of lengths[k:] sums to s
    for length in reversed(lengths):
        sums |= sums << length & fits
        reach.append(sums.to_bytes(size, "little"))
    reach.reverse()
    ways: list[int] = []
    steps = _STEPS_PER_WAY * _MOST_WAYS
    stack = [(0, packing_length, 0)]
    while stack:
        k, room, way = stack.pop()
        if room == 0:
            ways.append(way)
            if len(ways) > _MOST_WAYS:
                raise OutOfNodesError
        while room and reach[k][room >> 3] >> (room & 7) & 1:
            steps -= 1
            if lengths[k] <= room:
                stack.append((k + 1, room - lengths[k], way | 1 << k))
            k += 1
        if steps < 0:
            raise OutOfNodesError
    return ways


def _cover(segments: int, ways: list[int], nodes: int) -> list[int] | None:
    """Ways that hold every segment once, or None: proven that there are none."""
    failed: set[int] = set()
    chosen: list[int] = []
    branches: list[tuple[int, list[int], Iterator[int]]] = []
    left = (1 << segments) - 1
    while left:
        if left not in failed:
            nodes -= 1
            if nodes < 0:
                raise OutOfNodesError
            fewest = _positions_in_fewest(left, ways)
            branch = fewest & -fewest
            branches.append((left, ways, iter([way for way in ways if way & branch])))
            chosen.append(0)
        while branches:
            left, ways, untried = branches[-1]
            way = next(untried, 0)
            if way:
                break
            failed.add(left)
            branches.pop()
            chosen.pop()
        else:
            return None
        chosen[-1] = way
        left, ways = left & ~way, [other for other in ways if not other & way]
    return chosen


def _positions_in_fewest(left: int, ways: list[int]) -> int:
    """The positions of `left` that are in the fewest ways, counted in binary up to 15 for all of them at once."""
    ones = twos = fours = eights = 0
    for way in ways:
        carry = ones & way
        ones ^= way
        carry, twos = twos & carry, twos ^ carry
        carry, fours = fours & carry, fours ^ carry
        eights |= carry
    for digit in (eights, fours, twos, ones):
        left = left & ~digit or left
    return left
