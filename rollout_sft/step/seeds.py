"""Seeds that depend on what is computed, never on when: no global generator, no clock, no hash order."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """
    Mixes integers and names into one 63-bit seed.

    The trainer derives every rollout's seed from `("rollout", seed, global_step, micro_step, rank, sample)`, so a
    resumed run repeats its rollouts whatever state the global generators are in.

    Args:
        parts (`int` or `str`):
            What the seed shall depend on, in order.

    Returns:
        `int`: A seed in `[0, 2**63)`, the same in every process and Python version.
    """
    digest = hashlib.blake2b("\x1f".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_uniform(*parts: int | str) -> float:
    """A number in `[0, 1)` that depends on `parts` alone; see [`derive_seed`]."""
    return derive_seed(*parts) / 2**63
