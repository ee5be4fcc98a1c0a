"""Says what a run is about to do: the facts of the page with which it begins, and of `rollout_sft.check`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.trainer_utils import has_length

from rollout_sft.checks.leak_probe import LEAK, IsolationReport
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.sections import StageConfig
from rollout_sft.config.shorten import cut
from rollout_sft.config.without_effect import keys_without_effect
from rollout_sft.model.attention import VARLEN
from rollout_sft.model.attention_names import described_kernel, kernel_instead
from rollout_sft.model.wrappers import base_model
from rollout_sft.parts import Parts
from rollout_sft.ranks.zero3 import whole_shape
from rollout_sft.rollouts.end_tokens import EndTokens
from rollout_sft.trainer import RolloutSFTTrainer

BYTES_PER_TOKEN = 20
"""Memory of a waiting segment's token: its id and target as int64, its weight as float32."""


def stage_facts(
    stage: StageConfig, parts: Parts, trainer: RolloutSFTTrainer, report: IsolationReport | None
) -> dict[str, str]:
    """Returns the facts of the page with which a stage begins."""
    args = stage.training
    facts = model_facts(trainer.accelerator.unwrap_model(trainer.model), parts.tokenizer) | data_facts(stage, parts)
    facts["end of answers"] = end_fact(trainer.end_tokens, parts.tokenizer)
    facts |= step_facts(args, len(parts.train) if has_length(parts.train) else None)
    if trainer.attention is not None:
        facts["attention"] = attention_fact(trainer.attention)
        if trainer.recurrent.summary:
            facts["layers of packs"] = trainer.recurrent.summary
    return facts | {"leak probe": probe_fact(args, report), "output folder": str(args.output_dir)}


def model_facts(model: nn.Module, tokenizer: Any) -> dict[str, str]:
    """Returns what is trained: the class, the parameters, their type, the tokenizer."""
    base = base_model(model)
    parameters = [(_numel(p), p.requires_grad, p.dtype) for p in model.parameters()]
    total, trained = sum(n for n, _, _ in parameters), sum(n for n, trains, _ in parameters if trains)
    kinds = ", ".join(sorted({str(dtype).removeprefix("torch.") for _, _, dtype in parameters}))
    share = "all trained" if trained == total else f"{trained:,} trained ({trained / total:.2%})"
    adapter = "" if base is model or not hasattr(model, "peft_config") else f"{_adapters(model)} on "
    return {
        "model": f"{adapter}{type(base).__name__}, {total:,} parameters, {share}, {kinds}",
        "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens",
    }


def end_fact(ends: EndTokens, tokenizer: Any) -> str:
    """Says which token is trained as the end of an answer, and which others end a rollout."""
    trained, *others = (
        repr(tokenizer.convert_ids_to_tokens(t)) for t in (ends.trained, *sorted(ends.ids - {ends.trained}))
    )
    return f"{trained} is trained" + (
        f"; {', '.join(others)} end{'' if others[1:] else 's'} a rollout too" if others else ""
    )


def data_facts(stage: StageConfig, parts: Parts) -> dict[str, str]:
    """Returns where the samples come from, and how many there are."""
    facts = {"training data": f"{_size(parts.train)} from {_source(stage.train.source)}"}
    if stage.eval is not None:
        facts["evaluation data"] = f"{_size(parts.eval)} from {_source(stage.eval.source)}"
    return facts


def step_facts(args: RolloutSFTConfig, samples: int | None) -> dict[str, str]:
    """Returns what an optimizer step is: its samples, its packs, what decides, what generates."""
    batch, micro_steps, ranks = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    on_ranks = f" x {ranks} ranks" if ranks > 1 else ""
    facts = {
        "window": f"{batch} samples x {micro_steps} micro-batches{on_ranks} = {batch * micro_steps * ranks} samples a "
        f"step, trained in {micro_steps} micro-steps{' a rank' if ranks > 1 else ''}",
        "steps": _steps(args, samples),
        "packing": _packing(args),
        "rollouts": _rollouts(args),
        "target builder": f"{args.target_builder}"
        + (f", prefix supervision {args.prefix_supervision}" if args.target_builder == "objects" else ""),
    }
    unread = keys_without_effect(args)
    return facts | ({"without effect": unread} if unread else {})


def attention_fact(attention: str) -> str:
    """Says how packs are trained."""
    if attention == VARLEN:
        return f"{VARLEN}: each packed segment by itself, without a dense mask"
    kernel = kernel_instead(attention)
    if kernel is not None:
        return f"{described_kernel(kernel)}, a kernel that transformers downloaded from its hub"
    return f"{attention}, the model's own"


def probe_fact(args: RolloutSFTConfig, report: IsolationReport | None) -> str:
    """Says what the leak probe measured."""
    if not args.packing:
        return "not needed without packing"
    if not args.check_isolation:
        return "off (rollout_matching.check_isolation: false)"
    if report is None:
        return "runs before the first step, on the sharded model"
    return (
        f"passed: changing one segment moves its neighbours' logits by {report.leak:.1e} of the largest (limit "
        f"{LEAK:.0e}); copies of a segment differ by {report.copies:.1e}"
    )


def carry_buffer_fact(args: RolloutSFTConfig, longest: int) -> str:
    """Says how much memory the carry buffer may take."""
    if not args.packing or args.post_rollout_pack_scope != "micro":
        return "none: nothing is carried to the next window"
    size = args.packing_buffer * longest * BYTES_PER_TOKEN
    return (
        f"at most {args.packing_buffer} segments of {longest:,} tokens: {size / 2**20:,.1f} MiB a rank, also in every "
        "checkpoint (token ids and targets; images come on top)"
    )


def _numel(weight: Any) -> int:
    """Counts the numbers of a weight; two of them share a byte where bitsandbytes stores 4 bits."""
    quantized = getattr(weight, "quant_state", None)
    return int((whole_shape(weight) if quantized is None else quantized.shape).numel())


def _adapters(model: Any) -> str:
    return " + ".join(sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in model.peft_config.values()}))


def _size(dataset: Any) -> str:
    return f"{len(dataset):,} samples" if has_length(dataset) else "a stream"


def _source(source: str | Sequence[str]) -> str:
    return cut(source if isinstance(source, str) else ", ".join(source), 200)


def _steps(args: RolloutSFTConfig, samples: int | None) -> str:
    if args.max_steps > 0:
        return f"{args.max_steps:,} optimizer steps" + _too_long_a_warmup(args, args.max_steps)
    if samples is None:
        return "until the stream ends"
    loader = math.ceil(samples / (args.per_device_train_batch_size * args.world_size))
    steps = math.ceil(math.ceil(loader / args.gradient_accumulation_steps) * args.num_train_epochs)
    epochs = "1 epoch" if args.num_train_epochs == 1 else f"{args.num_train_epochs:g} epochs"
    return f"{steps:,} optimizer steps in {epochs}" + _too_long_a_warmup(args, steps)


def _too_long_a_warmup(args: RolloutSFTConfig, steps: int) -> str:
    warmup = args.get_warmup_steps(steps)
    if warmup < steps:
        return ""
    return f"; all of them warm up (warmup_steps {warmup:,}), so the learning rate never reaches {args.learning_rate:g}"


def _packing(args: RolloutSFTConfig) -> str:
    if not args.packing:
        return "off: every micro-batch is padded to its longest segment"
    if args.post_rollout_pack_scope == "micro":
        how = f"scope micro, policy {args.pack_policy}, at most {args.packing_buffer} segments wait"
    else:
        how = f"scope {args.post_rollout_pack_scope}, objective {args.pack_objective}, infeasible: {args.on_infeasible}"
    return f"{how}; packs of at most {args.packing_length:,} tokens; idle micro-steps: {args.idle_micro_steps}"


def _rollouts(args: RolloutSFTConfig) -> str:
    if args.reference_fraction >= 1:
        return "none: every sample is trained on its reference answer"
    sampling = "greedy" if args.decoding.temperature == 0 else f"temperature {args.decoding.temperature:g}"
    share = f", {args.reference_fraction:.0%} of the samples on reference answers" if args.reference_fraction else ""
    return f"{args.rollout_backend}, at most {args.decoding.max_new_tokens:,} new tokens, {sampling}{share}"
