"""Generates the random integers of the searches, the same in every version of Python."""


class Integers:
    """Generates integers by a linear congruential generator modulo 2^64; uses only the high half of its state.

    Source of the constants: D. E. Knuth, "The Art of Computer Programming" 2, section 3.3.4 (MMIX).
    """

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, n: int) -> int:
        """Returns an integer from 0 to n - 1, n at most 2^32. `O(1)`."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (self._state >> 32) * n >> 32

    def sample(self, n: int, size: int) -> list[int]:
        """Returns `size` different integers below n, in the order drawn; `O(size)` draws if size is well below n."""
        drawn: dict[int, None] = {}
        while len(drawn) < size:
            drawn[self.below(n)] = None
        return list(drawn)
