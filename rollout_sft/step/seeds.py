"""Derives seeds from what is computed and never from when: without a global generator, a clock or hash order."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """
    Mixes integers and names into one 63-bit seed.

    The trainer derives every rollout's seed from `("rollout", seed, global_step, micro_step, rank, sample)`. So a
    resumed run repeats its rollouts, independently of the state of the global generators.

    Args:
        parts (`int` or `str`):
            What the seed depends on, in order.

    Returns:
        `int`: A seed in `[0, 2**63)`, the same in every process and Python version.
    """
    digest = hashlib.blake2b("\x1f".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_uniform(*parts: int | str) -> float:
    """Returns a number in `[0, 1)` that depends only on `parts`; see [`derive_seed`]."""
    return derive_seed(*parts) / 2**63
