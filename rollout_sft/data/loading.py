"""From the section `data` to data sets."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from rollout_sft.config.run import DataSpec


def load_dataset(spec: DataSpec, tokenizer: Tokenizer, *, seed: int, require_objects: bool = True) -> Any:
    """
    The samples that a data section names.

    Args:
        spec (`DataSpec`):
            `digits`, a .jsonl file or the name of a `datasets` data set.
        tokenizer (`PreTrainedTokenizerBase`):
            Encodes the prompts.
        seed (`int`):
            Used where the section names none.
        require_objects (`bool`, *optional*, defaults to `True`):
            Whether records have to hold `objects`: what the target builder `objects` reads.

    Returns:
        A map-style data set of samples.
    """
    if spec.source == "digits":
        from rollout_sft.data.digits import DigitsDataset

        return DigitsDataset(
            spec.split,
            size=spec.size or 1024,
            seed=seed if spec.seed is None else spec.seed,
            max_digits=spec.max_digits,
            ramp_fraction=spec.ramp_fraction,
        )
    from rollout_sft.data.records import load_records

    return load_records(
        spec.source,
        tokenizer,
        split=spec.split,
        name=spec.name,
        limit=spec.size,
        require_objects=require_objects,
    )
