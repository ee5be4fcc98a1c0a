"""Holds the backends of a trainer: one for training, one for evaluation, and the weights that they use.

The Hugging Face backend generates with the live model itself. A backend with a separate engine needs a copy of the
weights: `sync` sends them once per change, at points that every rank reaches together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.text import TextInputs
from rollout_sft.reporting.stopwatch import phase
from rollout_sft.rollouts.base import RolloutBackend, SyncedBackend, check_backend
from rollout_sft.rollouts.check_answers import AnswerLimits
from rollout_sft.rollouts.endings import Endings
from rollout_sft.rollouts.hf import HFBackend
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm.backend import Engine, VLLMBackend
from rollout_sft.rollouts.vllm.image_prompts import check_image_model


class Generation(TrainerCallback):
    """
    Holds the backends of one trainer; as a callback it marks the weights as changed at every optimizer step.

    Args:
        args (`RolloutSFTConfig`):
            Names the backend and how to sample.
        tokenizer (`PreTrainedTokenizerBase`):
            Gives the padding.
        end_ids (`frozenset[int]`):
            Tokens that end a rollout.
        model (`Callable[[], nn.Module]`):
            Returns the unwrapped live model.
        backend (`RolloutBackend`, *optional*):
            The backend for training and evaluation, instead of the one that `args` names.
        inputs (`InputAdapter`, *optional*):
            What the model reads besides token ids; nothing for text.
        image_processor (`BaseImageProcessor`, *optional*):
            Makes the pixels of an image model.
        endings (`Endings`, *optional*):
            Where responses end early; nowhere when not given.

    Attributes:
        train (`RolloutBackend`):
            Answers training samples.
        evaluation (`RolloutBackend`):
            Answers evaluation samples.
        train_limits, evaluation_limits (`AnswerLimits`):
            The limits of the answers of the two backends.
        weights (`LiveWeights`):
            The weights for a backend with a separate engine.
    """

    def __init__(
        self,
        args: RolloutSFTConfig,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        model: Callable[[], nn.Module],
        backend: RolloutBackend | None = None,
        *,
        inputs: InputAdapter | None = None,
        image_processor: Any = None,
        endings: Endings | None = None,
    ):
        self.weights = LiveWeights(model)
        self._engine: Engine | None = None
        self.train: RolloutBackend
        self.evaluation: RolloutBackend
        ends = sorted(end_ids)
        decodings = args.decoding, args.eval_decoding
        live: Any = model
        inputs = inputs or TextInputs()
        self.train_limits, self.evaluation_limits = (
            AnswerLimits(
                vocab_size=live().config.get_text_config().vocab_size,
                max_new_tokens=decoding.max_new_tokens,
                end_ids=end_ids,
                media_token_ids=inputs.media_token_ids,
                endings=endings if backend is not None else None,
            )
            for decoding in decodings
        )
        if backend is not None:
            check_backend(backend)
            self.train = self.evaluation = backend
        elif args.rollout_backend == "vllm":
            processors = () if image_processor is None else (tokenizer, image_processor)
            engine = self._engine = _engine(args, self.weights, inputs, processors)
            kind = _kind(args)
            self.train, self.evaluation = (
                kind(engine, self.weights, decoding, eos_token_ids=ends, inputs=inputs, endings=endings)
                for decoding in decodings
            )
        else:
            pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            window = args.per_device_train_batch_size * args.gradient_accumulation_steps
            sizes = (args.rollout_batch_size or size for size in (window, args.per_device_eval_batch_size))
            self.train, self.evaluation = (
                HFBackend(
                    live,
                    decoding,
                    eos_token_ids=ends,
                    pad_token_id=pad,
                    batch_size=size,
                    inputs=inputs,
                    endings=endings,
                )
                for decoding, size in zip(decodings, sizes, strict=True)
            )

    def sync(self) -> None:
        """Sends the live weights to backends that generate with a copy; every rank calls it at the same point."""
        for backend in (self.train, self.evaluation):
            if isinstance(backend, SyncedBackend):
                with phase("weight_sync"):
                    backend.sync()

    def sleep(self) -> None:
        """Lets the engine release its memory to training until the next rollouts, if it can."""
        if self._engine is not None:
            self._engine.sleep()

    def close(self) -> None:
        """Stops the engine, if there is one."""
        if self._engine is not None:
            self._engine.close()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Marks the weights as changed."""
        self.weights.changed()


def _kind(args: RolloutSFTConfig) -> type[VLLMBackend]:
    """Returns the class of the backends with vLLM; that for servers needs an HTTP client."""
    if args.vllm.mode == "server":
        from rollout_sft.rollouts.vllm.served import ServedBackend

        return ServedBackend
    return VLLMBackend


def _engine(args: RolloutSFTConfig, weights: LiveWeights, inputs: InputAdapter, processors: Sequence[Any]) -> Engine:
    config = args.vllm
    if processors:
        check_image_model(weights.model.config, *processors)
    if config.mode == "server":
        from rollout_sft.rollouts.vllm.server import ServerEngine
        from rollout_sft.rollouts.vllm.weight_transfer import make_transfer

        transfer = make_transfer(config, default_folder=Path(str(args.output_dir)) / "rollout_weights")
        bar = args.should_log and not args.disable_tqdm
        return ServerEngine(config, transfer, show_progress=bar, inputs=inputs)
    from rollout_sft.rollouts.vllm.colocated import ColocatedEngine

    dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else str(weights.model.dtype).removeprefix("torch.")
    return ColocatedEngine(config, longest=args.longest_rollout, dtype=dtype, inputs=inputs, processors=processors)
