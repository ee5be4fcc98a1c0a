"""Exact subset sums with Python integers as bitsets.

Bit `room - s` of a bitset says that some subset has sum `s`: adding a segment is one shift and one or, sums
that overflow the room fall off the end, and bit 0 means an exact fit.
"""


def fill_room(lengths: list[int], room: int) -> list[int]:
    """Positions (ascending) of a subset with the largest sum that is at most `room`.

    Segments are tried in the given order and the search ends at the first exact fit, so segments early in the
    order are preferred. `O(n * room / 64)` time and memory at worst.
    """
    history = []
    reach = 1 << room
    for length in lengths:
        history.append(reach)
        reach |= reach >> length
        if reach & 1:
            break
    at_bit = (reach & -reach).bit_length() - 1
    chosen = []
    for position in range(len(history) - 1, -1, -1):
        if not history[position] >> at_bit & 1:
            chosen.append(position)
            at_bit += lengths[position]
    return chosen[::-1]


def select_optimal(encoded_lens: list[int], packing_length: int) -> list[int]:
    """The fullest pack that contains the oldest segment: ascending indices, `[]` for an empty buffer.

    FIFO-greedy's pick when it reaches the largest total there is, else the fewest segments, then the
    lexicographically smallest index set.
    """
    if not encoded_lens:
        return []
    room = packing_length - encoded_lens[0]
    fifo, free = [0], room
    for index in range(1, len(encoded_lens)):
        if encoded_lens[index] <= free:
            fifo.append(index)
            free -= encoded_lens[index]
    if free == 0:
        return fifo
    # fewest[i][s]: fewest segments of index >= i with sum s.
    fewest: list[dict[int, int]] = [{0: 0}]
    for length in reversed(encoded_lens[1:]):
        sums = dict(fewest[-1])
        for total, count in fewest[-1].items():
            if total + length <= room and count + 1 < sums.get(total + length, count + 2):
                sums[total + length] = count + 1
        fewest.append(sums)
    fewest.reverse()
    target = max(fewest[0])
    if room - free == target:
        return fifo
    chosen = [0]
    for index in range(1, len(encoded_lens)):
        count = fewest[index - 1][target]
        if count and fewest[index].get(target - encoded_lens[index], -1) == count - 1:
            chosen.append(index)
            target -= encoded_lens[index]
    return chosen
