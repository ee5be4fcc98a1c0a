"""`RolloutSFTConfig`: Hugging Face's `TrainingArguments` plus what rollout-matching SFT adds.

Field names are the keys of the YAML file; `rollout_sft.config.run` reads the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from rollout_sft.config.decoding import Decoding
from rollout_sft.config.inherited_arguments import check_dispatch, check_inherited
from rollout_sft.config.vllm import VLLMConfig

TRAINING = {"section": "training"}
ROLLOUT_MATCHING = {"section": "rollout_matching"}


def _choice(*values: str) -> dict[str, Any]:
    return {**ROLLOUT_MATCHING, "choices": values}


@dataclass(kw_only=True)
class RolloutSFTConfig(TrainingArguments):
    r"""
    Arguments of [`RolloutSFTTrainer`].

    Only what is new is listed; everything else is a `TrainingArguments` field and keeps its meaning.
    `per_device_train_batch_size` counts samples of a raw micro-batch and `gradient_accumulation_steps` (GA) the
    micro-batches of a window, and so the forward/backward micro-steps of every optimizer step.

    Args:
        global_max_length (`int`):
            Tokens of the longest packed forward; gives `packing_length`. In YAML `global_max_length` or
            `template.max_length`.
        packing (`bool`, *optional*, defaults to `True`):
            `training.packing`. When false, each micro-batch is padded and trained by itself.
        packing_buffer (`int`, *optional*, defaults to 512):
            `training.packing_buffer`: segments the carry buffer of scope `micro` may hold.
        packing_min_fill_ratio (`float`, *optional*, defaults to 0.65):
            `training.packing_min_fill_ratio`: a pack below it is reported as underfilled; decides nothing.
        packing_drop_last (`bool`, *optional*, defaults to `True`):
            `training.packing_drop_last`. Must be true: segments left in the carry buffer when training ends are
            reported, never trained in an extra step.
        callbacks (`list[str]`, *optional*):
            `training.callbacks`: `module:Class` of further callbacks, added when the trainer is made. A class whose
            constructor takes `trainer` is given the trainer, the others are made without arguments.
        post_rollout_pack_scope (`str`, *optional*, defaults to `"micro"`):
            `micro` pops one pack per micro-batch and carries the rest; `window` plans the packs of all GA
            micro-steps at once and carries nothing.
        pack_policy (`str`, *optional*, defaults to `"binpacking"`):
            Scope `micro`: which segments join the oldest one (`binpacking`, `fifo`, `optimal`).
        pack_objective (`str`, *optional*, defaults to `"dense"`):
            Scope `window`: `dense` fills the fewest packs, `balanced` lowers the longest one.
            Without effect in scope `micro` and where `packing` is false.
        idle_micro_steps (`str`, *optional*, defaults to `"dummy"`):
            Micro-steps without segments: `dummy` runs a zero-weight forward and backward in each, `skip` runs nothing
            in those that are idle on every rank ([`~rollout_sft.step.micro_steps`]). The gradient is the same.
        on_infeasible (`str`, *optional*, defaults to `"raise"`):
            Scope `window`, when the segments do not fit GA packs: `raise` stops the run before the first forward,
            `extra_steps` runs the packs that are too many inside the last micro-step. The gradient is the same.
            Without effect in scope `micro` and where `packing` is false: nothing can be infeasible there.
        rollout_backend (`str`, *optional*, defaults to `"hf"`):
            What generates: `hf` uses the live model's `generate`, `vllm` an engine that gets the live weights.
        vllm (`dict`, *optional*):
            Fields of [`~rollout_sft.rollouts.vllm.backend.VLLMConfig`].
        rollout_batch_size (`int`, *optional*):
            `hf`: prompts generated together at most. A whole window (`per_device_train_batch_size` x GA), or an
            evaluation batch, when not given; lower it if `generate` runs out of memory.
        decoding (`dict`, *optional*):
            Fields of [`~rollout_sft.config.decoding.Decoding`] for training rollouts.
        eval_decoding (`dict`, *optional*):
            Overrides of `decoding` for evaluation; greedy when not given.
        target_builder (`str`, *optional*, defaults to `"objects"`):
            `objects`, or `module:name` of a callable that takes `(tokenizer, config)` and returns a
            [`~rollout_sft.targets.base.TargetBuilder`].
        match_iou_threshold (`float`, *optional*, defaults to 0.5):
            `objects`: the least overlap at which a prediction and a truth may be matched.
        supervise_desc (`bool`, *optional*, defaults to `True`):
            `objects`: whether the `desc` values of appended objects are trained on.
        prefix_supervision (`str`, *optional*, defaults to `"coordinates"`):
            `objects`: what is trained inside the rollout. `coordinates`: the coordinates of matched objects. `expert`:
            every token that a correct expert is known to write there, so also the class and the choice to go on or to
            stop (docs/supervision.md).
        reference_fraction (`float`, *optional*, defaults to 0.0):
            Share of samples trained on their reference answer instead of a rollout.
        loss_reduction (`str`, *optional*, defaults to `"token"`):
            What counts the same in a window: every supervised `token`, every `segment`, or every raw `micro`-batch.
        attention (`str`, *optional*, defaults to `"auto"`):
            How packs are trained: `varlen` runs each segment by itself, with no mask
            ([`~rollout_sft.model.attention`]), `model` keeps the attention that the model was loaded with, `auto` takes
            `varlen` where it can run and the model would otherwise build dense masks.
        check_isolation (`bool`, *optional*, defaults to `True`):
            Whether to run the leak probe of [`~rollout_sft.checks.leak_probe.check_isolation`] before the first step.
        on_non_finite (`str`, *optional*, defaults to `"raise"`):
            A step whose loss or gradient is infinite or NaN never reaches the optimizer: `raise` ends the run, `skip`
            leaves the step out and counts it ([`~rollout_sft.step.non_finite`]).
        validate_schedule (`str`, *optional*, defaults to `"off"`):
            `first_window` or `every_window`: compare the packs with their segments one by one, bookkeeping, loss and
            gradient, and stop at the first difference ([`~rollout_sft.checks.equivalence`]).
    """

    global_max_length: int = field(default=0, metadata={"section": "top"})
    packing: bool = field(default=True, metadata=TRAINING)
    packing_buffer: int = field(default=512, metadata=TRAINING)
    packing_min_fill_ratio: float = field(default=0.65, metadata=TRAINING)
    packing_drop_last: bool = field(default=True, metadata=TRAINING)
    callbacks: list[str] = field(default_factory=list, metadata=TRAINING)
    post_rollout_pack_scope: str = field(default="micro", metadata=_choice("micro", "window"))
    pack_policy: str = field(default="binpacking", metadata=_choice("binpacking", "fifo", "optimal"))
    pack_objective: str = field(default="dense", metadata=_choice("dense", "balanced"))
    idle_micro_steps: str = field(default="dummy", metadata=_choice("dummy", "skip"))
    on_infeasible: str = field(default="raise", metadata=_choice("raise", "extra_steps"))
    rollout_backend: str = field(default="hf", metadata=_choice("hf", "vllm"))
    vllm: dict[str, Any] = field(default_factory=dict, metadata=ROLLOUT_MATCHING)
    rollout_batch_size: int | None = field(default=None, metadata=ROLLOUT_MATCHING)
    decoding: dict[str, Any] = field(default_factory=dict, metadata=ROLLOUT_MATCHING)
    eval_decoding: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0}, metadata=ROLLOUT_MATCHING)
    target_builder: str = field(default="objects", metadata=ROLLOUT_MATCHING)
    match_iou_threshold: float = field(default=0.5, metadata=ROLLOUT_MATCHING)
    supervise_desc: bool = field(default=True, metadata=ROLLOUT_MATCHING)
    prefix_supervision: str = field(default="coordinates", metadata=_choice("coordinates", "expert"))
    reference_fraction: float = field(default=0.0, metadata=ROLLOUT_MATCHING)
    loss_reduction: str = field(default="token", metadata=_choice("token", "segment", "micro"))
    attention: str = field(default="auto", metadata=_choice("auto", "varlen", "model"))
    check_isolation: bool = field(default=True, metadata=ROLLOUT_MATCHING)
    on_non_finite: str = field(default="raise", metadata=_choice("raise", "skip"))
    validate_schedule: str = field(default="off", metadata=_choice("off", "first_window", "every_window"))

    # Raw samples reach the trainer as they are, and one line is logged per optimizer step.
    remove_unused_columns: bool = False
    logging_steps: float = 1
    # The filter hides a loss that is not a number behind the mean, and waits for the device in every micro-step.
    logging_nan_inf_filter: bool = False
    resume_from_checkpoint: str | bool | None = None  # type: ignore[assignment]  # true: from the last checkpoint
    fsdp: str | bool | list[str] | None = None  # type: ignore[assignment]  # transformers documents fsdp=True

    @property
    def packing_length(self) -> int:
        """Tokens a packed forward may hold at most."""
        return self.global_max_length

    def train_decoding(self) -> Decoding:
        """How training rollouts are sampled."""
        return Decoding(**self.decoding)

    def evaluation_decoding(self) -> Decoding:
        """How evaluation rollouts are sampled."""
        return Decoding(**{**self.decoding, **self.eval_decoding})

    def vllm_config(self) -> VLLMConfig:
        """How vLLM is used, where it is the backend."""
        return VLLMConfig(**self.vllm)

    def __post_init__(self) -> None:
        check_inherited(self)
        super().__post_init__()
        # Dispatching an iterable data set from rank 0 would try to slice raw samples as if they were tensors.
        assert isinstance(self.accelerator_config, AcceleratorConfig)
        check_dispatch(self.accelerator_config.dispatch_batches)
        self.accelerator_config.dispatch_batches = False
        self._check_values()
        self._reject_data_parallel()

    def _check_values(self) -> None:
        if self.global_max_length < 1:
            raise ValueError(
                f"global_max_length is {self.global_max_length}; it takes the tokens of the longest packed forward "
                "(1 or more). In YAML set global_max_length or template.max_length."
            )
        if not self.packing_drop_last:
            raise ValueError(
                "training.packing_drop_last is false, but scheduling is carry-only: segments left in the carry "
                "buffer when training ends get no extra step. Set packing_drop_last: true, or "
                "rollout_matching.post_rollout_pack_scope: window, which carries nothing."
            )
        for spec in self.__dataclass_fields__.values():
            choices = spec.metadata.get("choices")
            value = getattr(self, spec.name)
            if choices and spec.metadata.get("section") == "rollout_matching" and value not in choices:
                raise ValueError(f"rollout_matching.{spec.name} is {value!r}; it takes one of {', '.join(choices)}.")
        ranges = {
            "training.packing_buffer": (self.packing_buffer, self.packing_buffer >= 1, "1 segment or more"),
            "training.packing_min_fill_ratio": (
                self.packing_min_fill_ratio,
                0 <= self.packing_min_fill_ratio <= 1,
                "a share between 0 and 1",
            ),
            "rollout_matching.reference_fraction": (
                self.reference_fraction,
                0 <= self.reference_fraction <= 1,
                "a share between 0 and 1",
            ),
            "rollout_matching.match_iou_threshold": (
                self.match_iou_threshold,
                0 < self.match_iou_threshold <= 1,
                "more than 0 and at most 1",
            ),
            "rollout_matching.rollout_batch_size": (
                self.rollout_batch_size,
                self.rollout_batch_size is None or self.rollout_batch_size >= 1,
                "1 prompt or more, or nothing",
            ),
        }
        for key, (number, holds, takes) in ranges.items():
            if not holds:
                raise ValueError(f"{key} is {number}; it takes {takes}.")
        if self.validate_schedule != "off" and not self.packing:
            raise ValueError(
                f"rollout_matching.validate_schedule is {self.validate_schedule}, but training.packing is false: there "
                "are no packs to compare. Set it to off."
            )
        self.train_decoding()
        try:
            self.evaluation_decoding()
        except ValueError as error:  # not a value of `decoding`: those were good
            message = str(error).replace("rollout_matching.decoding.", "rollout_matching.eval_decoding.")
            raise ValueError(message) from None
        if self.rollout_backend == "vllm":
            self.vllm_config()

    def _reject_data_parallel(self) -> None:
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs in one process would run torch's DataParallel, which splits a packed row. "
                "Start one process per GPU: accelerate launch --multi_gpu -m rollout_sft.train --config ..."
            )
