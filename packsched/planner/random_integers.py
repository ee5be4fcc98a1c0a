"""A generator of integers that gives the same numbers in every version of Python: the searches draw from it."""


class Integers:
    """A linear congruential generator modulo 2^64; only the high half of its state is used.

    Source of the constants: D. E. Knuth, "The Art of Computer Programming" 2, section 3.3.4 (MMIX).
    """

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1, n at most 2^32. `O(1)`."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (self._state >> 32) * n >> 32

    def sample(self, n: int, size: int) -> list[int]:
        """`size` different integers below n, in the order drawn. `O(size)` draws while size is well below n."""
        drawn: dict[int, None] = {}
        while len(drawn) < size:
            drawn[self.below(n)] = None
        return list(drawn)
