"""Lists what would end a run later, or spoil it in silence: one list for `rollout_sft.check` and for training.

[`find_in_model`] runs when a trainer is made, so in both. [`find_in_data`] runs in the check and at the start of
`rollout_sft.train`; it needs samples that can be read twice.
"""

from __future__ import annotations

import copy
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.shorten import cut, shorten
from rollout_sft.lengths import Lengths
from rollout_sft.model.wrappers import base_model
from rollout_sft.rollouts.end_tokens import find_end_tokens

logger = logging.getLogger(__name__)

WEIGHTS_PER_TENSOR = 4096
"""Of each tensor, the most weights that are asked whether an update would move them."""
ROUNDED_AWAY = 0.1
"""The share of weights that an update may leave unmoved without a word."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """
    Holds one thing that was found before training.

    Args:
        severity (`str`):
            `error`: the run cannot end well. `problem`: it may end before its last step; the check says so with status
            2, and training goes on. `warning`: it trains, perhaps not as meant.
        message (`str`):
            The numbers, and what to do.
    """

    severity: Literal["error", "problem", "warning"]
    message: str


def report_findings(findings: Iterable[Finding]) -> None:
    """
    Logs what was found as warnings, on the first process alone.

    Raises:
        `ValueError`: there are errors; the message holds them all.
    """
    found = list(findings)
    for finding in found:
        if finding.severity != "error" and PartialState().is_main_process:
            logger.warning("%s", finding.message)
    errors = [finding.message for finding in found if finding.severity == "error"]
    if errors:
        raise ValueError("\n".join(errors))


def find_in_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, image_processor: Any, args: RolloutSFTConfig
) -> Iterator[Finding]:
    """
    Yields what the model, its tokenizer and the arguments show; reads a part of the weights and writes a temporary
    folder without weights.

    Args:
        model (`nn.Module`):
            The unwrapped model.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        image_processor (`BaseImageProcessor`, *optional*):
            Of an image model.
        args (`RolloutSFTConfig`):
            How it is trained.
    """
    yield from _find_unsavable(model, tokenizer, image_processor, args)
    yield from _find_missing_rows(model, tokenizer, args)
    share, kind = rounded_away(model, args.learning_rate)
    if share > ROUNDED_AWAY:
        yield Finding(
            severity="warning",
            message=f"an update as large as training.learning_rate {args.learning_rate:g}, which is what AdamW makes, "
            f"rounds to nothing in {share:.0%} of the trained weights, because they are kept in {kind} alone. Set "
            "model.dtype: float32 and, for the speed of bfloat16, training.bf16: true.",
        )


def find_in_data(args: RolloutSFTConfig, lengths: Lengths, model: nn.Module | None) -> Iterator[Finding]:
    """
    Yields what the measured samples show.

    Args:
        args (`RolloutSFTConfig`):
            How they are trained.
        lengths (`Lengths`):
            What was measured.
        model (`nn.Module`, *optional*):
            The unwrapped model; None where a stage before this one makes it.
    """
    if model is not None:
        yield from _find_ids_without_row(lengths, embedding_rows(model))
        yield from _find_long_positions(args, lengths, model)
    yield from _find_short_decoding(args, lengths)
    if args.packing and args.on_oversized != "skip":
        yield from _find_oversized(args, lengths)


def find_missing_end(lengths: Lengths) -> Iterator[Finding]:
    """Yields that no reference answer trains the end token; training says so after its first window of segments."""
    if lengths.references and not lengths.ends:
        yield Finding(
            severity="warning",
            message=f"none of the {len(lengths.references)} reference answers trains the end token, so the model does "
            "not learn to stop. A target builder appends find_end_tokens(tokenizer, config).trained "
            "(rollout_sft.targets) to the tokens and makes it the last target.",
        )


def rounded_away(model: nn.Module, rate: float) -> tuple[float, str]:
    """
    Returns the share of the trained weights that an update of `rate` does not move, and the type of the first of them.

    Looks at up to 4,096 weights of each tensor. A weight of bfloat16 has 8 significant bits, so it does not move when
    the update is smaller than a 512th of it to a 256th of it.
    """
    unmoved, trained, kind = 0.0, 0, "float32"
    for weight in model.parameters():
        if not weight.requires_grad or not weight.numel():
            continue
        trained += weight.numel()
        local: Tensor = weight.detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        if weight.dtype not in (torch.bfloat16, torch.float16) or local.is_meta or not local.numel() or rate <= 0:
            continue
        flat = local.reshape(-1)[:: max(1, local.numel() // WEIGHTS_PER_TENSOR)]
        share = torch.stack([flat + rate == flat, flat - rate == flat]).double().mean().item()
        if share and not unmoved:
            kind = str(weight.dtype).removeprefix("torch.")
        unmoved += share * weight.numel()
    return unmoved / max(trained, 1), kind


def embedding_rows(model: nn.Module) -> int | None:
    """Returns how many token ids the model can read and predict; None if it does not say."""
    rows = []
    for get in ("get_input_embeddings", "get_output_embeddings"):
        try:
            layer = getattr(base_model(model), get)()
        except (AttributeError, NotImplementedError):
            continue
        weight = getattr(layer, "weight", None)
        if weight is not None and len(shape := getattr(weight, "ds_shape", weight.shape)) == 2:
            rows.append(int(shape[0]))
    return min(rows, default=None)


def learned_positions(model: nn.Module) -> int | None:
    """Returns how many positions a model has that keeps them in a table, as GPT-2 does; None for any other model."""
    base = base_model(model)
    config = getattr(base, "config", None)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    if not isinstance(limit, int):
        return None
    for name, table in chain(base.named_parameters(), base.named_buffers()):
        of_images = any(part in name for part in ("vision", "visual", "image"))
        # OPT and its like keep two rows more.
        if ("pos" in name or "wpe" in name) and not of_images and table.ndim == 2 and 0 <= len(table) - limit <= 2:
            return limit
    return None


def _find_unsavable(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, image_processor: Any, args: RolloutSFTConfig
) -> Iterator[Finding]:
    """Saves everything but weights, as the first checkpoint will."""
    base: Any = base_model(model)
    saved: list[tuple[str, str, Callable[[str], Any]]] = []
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, dict):
        saved += [("adapter's configuration", "", adapter.save_pretrained) for adapter in adapters.values()]
    elif hasattr(base, "save_pretrained"):
        config, generation = _as_trained(base, tokenizer)
        saved.append(("model's configuration", " Mend config.json in the model's folder.", config.save_pretrained))
        if base.can_generate():
            where = " Mend generation_config.json in the model's folder (model.generation_config)."
            saved.append(("model's generation_config", where, generation.save_pretrained))
    saved.append(("tokenizer", "", tokenizer.save_pretrained))
    if image_processor is not None:
        saved.append(("image processor", "", image_processor.save_pretrained))
    saved.append(("training arguments", "", lambda folder: torch.save(args, io.BytesIO())))
    for what, where, save in saved:
        with tempfile.TemporaryDirectory() as folder:
            try:
                save(folder)
            except Exception as error:  # a configuration may hold anything, and says in its own way what is wrong
                why = f"{type(error).__name__}: {cut(' '.join(str(error).split()), 500)}"
                yield Finding(
                    severity="error",
                    message=f"the {what} cannot be saved, so the first checkpoint would end the run.{where} {why}",
                )


def _as_trained(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[Any, Any]:
    """Returns copies of the model's configurations with the special tokens that the Trainer will give them.

    A generation_config that was loaded and never changed can be saved whatever it holds; a changed one is checked.
    """
    copied = SimpleNamespace(
        config=copy.deepcopy(model.config), generation_config=copy.deepcopy(model.generation_config)
    )
    said = logging.getLogger("transformers.trainer_utils")
    level = said.level
    said.setLevel(logging.ERROR)  # the Trainer says it when it does it
    try:
        align_special_tokens(copied, tokenizer)
    finally:
        said.setLevel(level)
    return copied.config, copied.generation_config


def _find_missing_rows(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: RolloutSFTConfig
) -> Iterator[Finding]:
    rows = embedding_rows(model)
    if rows is None:
        return
    advice = (
        "Use the model's own tokenizer, or give the model rows for it: model.resize_token_embeddings(len(tokenizer)), "
        "then save_pretrained."
    )
    special: dict[str, int | None] = {"end": find_end_tokens(tokenizer, args).trained}
    if args.rollout_backend == "hf":  # which pads the prompts of a batch
        special["padding"] = tokenizer.pad_token_id
    missing = {name: token for name, token in special.items() if token is not None and token >= rows}
    for name, token in missing.items():
        yield Finding(
            severity="error",
            message=f"the tokenizer's {name} token has the id {token}, but the model has {rows} embeddings, so the "
            f"first batch that holds it would end the run. {advice}",
        )
    beyond = sorted((token, text) for text, token in tokenizer.get_vocab().items() if token >= rows)
    if beyond and not missing:
        yield Finding(
            severity="warning",
            message=f"the tokenizer has {len(beyond)} token{'s' * (len(beyond) > 1)} for which the model's {rows} "
            f"embeddings have no row, such as {shorten(beyond[0][1])} (id {beyond[0][0]}). A prompt or an answer that "
            "holds one ends the run. "
            f"{advice}",
        )


def _find_ids_without_row(lengths: Lengths, rows: int | None) -> Iterator[Finding]:
    if rows is not None and lengths.highest_id >= rows:
        yield Finding(
            severity="error",
            message=f"sample {lengths.highest_id_in!r} holds the token id {lengths.highest_id}, but the model has "
            f"{rows} embeddings. Use the model's own tokenizer, or give the model a row for each token: "
            "model.resize_token_embeddings(len(tokenizer)), then save_pretrained.",
        )


def _find_long_positions(args: RolloutSFTConfig, lengths: Lengths, model: nn.Module) -> Iterator[Finding]:
    positions = learned_positions(model)
    vllm = args.vllm if args.rollout_backend == "vllm" and args.vllm.mode == "colocate" else None
    holds = None if vllm is None else vllm.engine_args.get("max_model_len", vllm.max_model_len)
    longest = max([lengths.longest, *lengths.references])
    if positions is not None and longest > positions:
        yield Finding(
            severity="error",
            message=f"a sample has {longest:,} tokens with its reference answer, but the model has only {positions:,} "
            "positions. Leave such samples out, or use a model with more positions.",
        )
    for limit, what in (
        (positions, "positions of the model"),
        (holds, "tokens of rollout_matching.vllm.max_model_len"),
    ):
        if limit is not None and lengths.longest + new_tokens(args) > limit >= lengths.longest:
            yield Finding(
                severity="error" if limit is holds else "problem",
                message=f"sample {lengths.longest_id!r}: its prompt of {lengths.longest:,} tokens and max_new_tokens "
                f"{new_tokens(args):,} come to more than the {limit:,} {what}. Lower decoding.max_new_tokens"
                + (", or raise max_model_len." if limit is holds else "."),
            )


def _find_short_decoding(args: RolloutSFTConfig, lengths: Lengths) -> Iterator[Finding]:
    used = {"decoding": args.decoding} if args.reference_fraction < 1 else {}
    if lengths.evaluates and args.eval_decoding.max_new_tokens != args.decoding.max_new_tokens:
        used["eval_decoding"] = args.eval_decoding
    elif lengths.evaluates:
        used["decoding"] = args.decoding
    for name, decoding in used.items():
        most, given = decoding.max_new_tokens, len(lengths.responses)
        if cut_off := [length for length in lengths.responses if length > most]:
            yield Finding(
                severity="warning",
                message=f"{len(cut_off)} of {given} samples ({len(cut_off) / given:.0%}) have a reference answer "
                f"longer than {name}.max_new_tokens {most:,} (the longest has {max(cut_off):,} tokens with its end), "
                f"so the model cannot finish such an answer. Raise rollout_matching.{name}.max_new_tokens.",
            )


def _find_oversized(args: RolloutSFTConfig, lengths: Lengths) -> Iterator[Finding]:
    cap, longest = args.packing_length, longest_rollout(args, lengths)
    skip = "or set rollout_matching.on_oversized: skip."
    if longest > cap:
        what = "prompt and max_new_tokens" if args.reference_fraction < 1 else "prompt"
        yield Finding(
            severity="problem",
            message=f"sample {lengths.longest_id!r}: its {what} may come to {longest:,} tokens, more than "
            f"global_max_length {cap:,}; such a segment ends the run. Raise global_max_length, lower max_new_tokens, "
            f"{skip}",
        )
    over = [length for length in lengths.references if length > cap]
    if over:
        yield Finding(
            severity="problem",
            message=f"{len(over)} of {len(lengths.references)} samples have a reference answer whose segment is longer "
            f"than global_max_length {cap:,} (the longest {max(over):,}). Raise global_max_length, {skip}",
        )
    micro_steps = args.gradient_accumulation_steps
    samples = min(micro_steps * args.per_device_train_batch_size, lengths.total or sys.maxsize)
    tokens = samples * sum(lengths.references) / max(len(lengths.references), 1)
    plans = args.post_rollout_pack_scope != "micro" and args.on_infeasible == "raise"
    if plans and not over and tokens > micro_steps * cap:
        yield Finding(
            severity="problem",
            message=f"a window of {samples:,} segments like the reference answers has {tokens:,.0f} tokens, more than "
            f"{micro_steps} micro-steps hold ({micro_steps * cap:,}); the run ends at the first such window. Lower "
            "per_device_train_batch_size, raise global_max_length, or set rollout_matching.on_infeasible: extra_steps.",
        )


def new_tokens(args: RolloutSFTConfig) -> int:
    """Returns the most tokens of a rollout in training; 0 where only reference answers are trained."""
    return args.decoding.max_new_tokens if args.reference_fraction < 1 else 0


def longest_rollout(args: RolloutSFTConfig, lengths: Lengths) -> int:
    """Returns the most tokens of a segment of training with the longest prompt."""
    return lengths.longest + new_tokens(args)
