"""Defines `RolloutSFTConfig`: Hugging Face's `TrainingArguments` plus the arguments of rollout-matching SFT.

Field names are the keys of the YAML file; `rollout_sft.config.run` reads the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from rollout_sft.config.decoding import Decoding
from rollout_sft.config.deepspeed import check_deepspeed, start_communication
from rollout_sft.config.inherited_arguments import check_dispatch, check_inherited, init_inherited
from rollout_sft.config.keys import Range, Section, build, section_of
from rollout_sft.config.other_trainers import DECODING_KEYS, MATCHING_KEYS, TRAINING_KEYS
from rollout_sft.config.segment_cost import SegmentCostConfig
from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.config.waves import check_waves

_TOP = {"section": "top"}
_MATCHING = {"section": "rollout_matching"}
_DATACLASSES = ("vllm", "decoding", "eval_decoding", "segment_cost")

_SET_BY_US = {
    *("conversation", "tokenize", "add_generation_prompt", "continue_final_message", "padding", "truncation"),
    *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}
"""Arguments of `apply_chat_template` that say how it is used, not what the template writes."""

_LENGTH = Range(
    takes="the tokens of the longest packed forward, 1 or more (in YAML: global_max_length or template.max_length)",
    at_least=1,
)
Overlap = Annotated[float, Range(takes="more than 0 and at most 1", more_than=0, at_most=1)]
Prompts = Annotated[int | None, Range(takes="1 prompt or more, or nothing", at_least=1)]
Share = Annotated[float, Range(takes="a share between 0 and 1", at_least=0, at_most=1)]


@dataclass(kw_only=True)
class RolloutSFTConfig(TrainingArguments):
    r"""
    Holds the arguments of [`RolloutSFTTrainer`].

    Only the new arguments are listed; all others are fields of `TrainingArguments` and keep their meaning.
    `per_device_train_batch_size` counts samples of a raw micro-batch and `gradient_accumulation_steps` (GA) the
    micro-batches of a window, and so the forward/backward micro-steps of every optimizer step.

    Args:
        global_max_length (`int`):
            Tokens of the longest packed forward; gives `packing_length`. In YAML `global_max_length` or
            `template.max_length`.
        chat_template_kwargs (`dict`, *optional*):
            `data.chat_template_kwargs`: further arguments of the chat template, such as `enable_thinking: false`.
        packing (`bool`, *optional*, defaults to `True`):
            `training.packing`. When false, each micro-batch is padded and trained by itself.
        packing_buffer (`int`, *optional*, defaults to 512):
            `training.packing_buffer`: segments the carry buffer of scope `micro` may hold.
        packing_min_fill_ratio (`float`, *optional*, defaults to 0.65):
            `training.packing_min_fill_ratio`: a pack with a lower fill is reported as underfilled. It decides nothing.
        packing_drop_last (`bool`, *optional*, defaults to `True`):
            `training.packing_drop_last`. Must be true: segments left in the carry buffer when training ends are
            reported, never trained in an extra step.
        callbacks (`list[str]`, *optional*):
            `training.callbacks`: `module:Class` of further callbacks, added when the trainer is made. A class whose
            constructor takes `trainer` gets the trainer; the others are made without arguments.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            `training.overwrite_output_dir`: whether a run that does not resume may replace the checkpoints or the model
            that its `output_dir` holds. When false, the command refuses to start.
        resume_with_changes (`list[str]`, *optional*):
            `training.resume_with_changes`: settings that may differ from those of the checkpoint that a run resumes
            from, such as `training.learning_rate`; every other change is refused by name.
        post_rollout_pack_scope (`str`, *optional*, defaults to `"micro"`):
            `micro` pops one pack per micro-batch and carries the rest; `window` plans the packs of all GA
            micro-steps at once and carries nothing; `global` does so after moving segments between ranks, so that every
            rank's window fits and all cost the same.
        pack_policy (`str`, *optional*, defaults to `"binpacking"`):
            Scope `micro`: which segments join the oldest one (`binpacking`, `fifo`, `optimal`). The time of
            `binpacking` grows with the square of the segments that wait; take `optimal` where hundreds wait.
        pack_objective (`str`, *optional*, defaults to `"dense"`):
            Scopes `window` and `global`: `dense` fills the fewest packs, `balanced` lowers the longest one,
            `cost` the costliest one.
            Without effect in scope `micro` and where `packing` is false.
        segment_cost ([`~rollout_sft.config.segment_cost.SegmentCostConfig`], *optional*):
            What a segment costs, for scope `global` and objective `cost`; from the model's configuration when not
            given. A mapping of its fields is taken as well.
        rollout_waves (`int`, *optional*, defaults to 1):
            Scope `window` with vLLM servers: hands out the rollouts of a window in up to this many waves, the short
            responses first, and trains on the packs that they fill while the long ones are still generated
            ([`~rollout_sft.step.waves`]). The gradient is the same. The first window runs as with 1, because the waves
            follow from the lengths of the window before; so do other backends, with a warning.
        idle_micro_steps (`str`, *optional*, defaults to `"dummy"`):
            Micro-steps without segments: `dummy` runs a zero-weight forward and backward in each, `skip` runs nothing
            in those that are idle on every rank ([`~rollout_sft.step.micro_steps`]). The gradient is the same.
        on_infeasible (`str`, *optional*, defaults to `"raise"`):
            Scopes `window` and `global`, when the segments do not fit GA packs: `raise` stops the run before the first
            forward, `extra_steps` runs the surplus packs inside the last micro-step. The gradient is the same.
            Without effect in scope `micro` and where `packing` is false, because nothing can be infeasible there.
        on_oversized (`str`, *optional*, defaults to `"raise"`):
            A segment that is longer than `packing_length`: `raise` stops the run, `skip` leaves its sample out of the
            window, warns with its id and counts it (`packing/oversized`).
        rollout_backend (`str`, *optional*, defaults to `"hf"`):
            What generates: `hf` uses the live model's `generate`, `vllm` an engine that gets the live weights.
        vllm ([`~rollout_sft.config.vllm.VLLMConfig`], *optional*):
            How vLLM is used; a mapping of its fields is taken as well.
        rollout_batch_size (`int`, *optional*):
            `hf`: the most prompts that are generated together. A whole window (`per_device_train_batch_size` x GA), or
            an evaluation batch, when not given; lower it if `generate` runs out of memory.
        end_rollouts (`str`, *optional*, defaults to `"never"`):
            Whether a rollout ends before its end token and `max_new_tokens` when it can add nothing to training.
            `closed`: when the target builder can keep nothing that may follow, as behind the end of a list of objects.
            `looping`: also when the response repeats itself, four times and for 128 tokens at least, without completing
            anything that is kept. It then counts as truncated; what is trained is the same
            (docs/howto/end_rollouts.md). In evaluation as well.
        end_tokens (`list[str]`, *optional*):
            Further tokens that end a rollout, by name. All end tokens of the model's `generation_config` and of the
            tokenizer end it anyway ([`~rollout_sft.rollouts.end_tokens`]).
        decoding ([`~rollout_sft.config.decoding.Decoding`], *optional*):
            How training rollouts are sampled; a mapping of its fields is taken as well.
        eval_decoding ([`~rollout_sft.config.decoding.Decoding`], *optional*):
            How evaluation rollouts are sampled. A mapping overrides fields of `decoding`; `decoding` with temperature 0
            when not given.
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
        ensure_ascii (`bool`, *optional*, defaults to `False`):
            `objects`: whether truths are written as `json.dumps` writes them by default, with `\u732b` for `猫`.
        reference_fraction (`float`, *optional*, defaults to 0.0):
            Share of samples trained on their reference answer instead of a rollout.
        loss_reduction (`str`, *optional*, defaults to `"token"`):
            What counts the same in a window: every supervised `token`, every `segment`, or every raw `micro`-batch.
        attention (`str`, *optional*, defaults to `"auto"`):
            How packs are trained: `varlen` runs each segment by itself, with no mask
            ([`~rollout_sft.model.attention`]), `model` keeps the attention that the model was loaded with, `auto` takes
            `varlen` where it can run and the model would otherwise build dense masks. Recurrent layers keep segments
            apart in all three ([`~rollout_sft.model.recurrent`]); the log says how.
        check_isolation (`bool`, *optional*, defaults to `True`):
            Whether to run the leak probe of [`~rollout_sft.checks.leak_probe.check_isolation`] before the first step,
            and the probe of segments of very different lengths ([`~rollout_sft.checks.length_probe`]), which costs
            less than two micro-steps.
        on_non_finite (`str`, *optional*, defaults to `"raise"`):
            A step whose loss or gradient is infinite or NaN never reaches the optimizer: `raise` ends the run, `skip`
            leaves the step out and counts it ([`~rollout_sft.step.non_finite`]).
        validate_schedule (`str`, *optional*, defaults to `"off"`):
            `first_window` or `every_window`: compare the packs with their segments one by one, bookkeeping, loss and
            gradient, and stop at the first difference ([`~rollout_sft.checks.equivalence`]).
    """

    global_max_length: Annotated[int, _LENGTH] = field(default=0, metadata=_TOP)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict, metadata={"section": "data"})
    packing: bool = True
    packing_buffer: Annotated[int, Range(takes="1 segment or more", at_least=1)] = 512
    packing_min_fill_ratio: Share = 0.65
    packing_drop_last: bool = True
    callbacks: list[str] = field(default_factory=list)
    overwrite_output_dir: bool = False
    resume_with_changes: list[str] = field(default_factory=list)
    post_rollout_pack_scope: Literal["micro", "window", "global"] = field(default="micro", metadata=_MATCHING)
    pack_policy: Literal["binpacking", "fifo", "optimal"] = field(default="binpacking", metadata=_MATCHING)
    pack_objective: Literal["dense", "balanced", "cost"] = field(default="dense", metadata=_MATCHING)
    segment_cost: SegmentCostConfig = field(default_factory=SegmentCostConfig, metadata=_MATCHING)
    rollout_waves: Annotated[int, Range(takes="1 wave or more", at_least=1)] = field(default=1, metadata=_MATCHING)
    idle_micro_steps: Literal["dummy", "skip"] = field(default="dummy", metadata=_MATCHING)
    on_infeasible: Literal["raise", "extra_steps"] = field(default="raise", metadata=_MATCHING)
    on_oversized: Literal["raise", "skip"] = field(default="raise", metadata=_MATCHING)
    rollout_backend: Literal["hf", "vllm"] = field(default="hf", metadata=_MATCHING)
    vllm: VLLMConfig = field(default_factory=VLLMConfig, metadata=_MATCHING)
    rollout_batch_size: Prompts = field(default=None, metadata=_MATCHING)
    end_rollouts: Literal["never", "closed", "looping"] = field(default="never", metadata=_MATCHING)
    end_tokens: list[str] = field(default_factory=list, metadata=_MATCHING)
    decoding: Decoding = field(default_factory=Decoding, metadata=_MATCHING)
    eval_decoding: Decoding = field(default=None, metadata=_MATCHING)  # type: ignore[assignment]  # made in `_convert`
    target_builder: str = field(default="objects", metadata=_MATCHING)
    match_iou_threshold: Overlap = field(default=0.5, metadata=_MATCHING)
    supervise_desc: bool = field(default=True, metadata=_MATCHING)
    prefix_supervision: Literal["coordinates", "expert"] = field(default="coordinates", metadata=_MATCHING)
    ensure_ascii: bool = field(default=False, metadata=_MATCHING)
    reference_fraction: Share = field(default=0.0, metadata=_MATCHING)
    loss_reduction: Literal["token", "segment", "micro"] = field(default="token", metadata=_MATCHING)
    attention: Literal["auto", "varlen", "model"] = field(default="auto", metadata=_MATCHING)
    check_isolation: bool = field(default=True, metadata=_MATCHING)
    on_non_finite: Literal["raise", "skip"] = field(default="raise", metadata=_MATCHING)
    validate_schedule: Literal["off", "first_window", "every_window"] = field(default="off", metadata=_MATCHING)

    # Raw samples reach the trainer as they are, and one line is logged per optimizer step.
    remove_unused_columns: bool = False
    logging_steps: float = 1
    # The filter replaces a loss that is not a number by the mean, and waits for the device in every micro-step.
    logging_nan_inf_filter: bool = False
    log_on_each_node: bool = False  # tables and lines once for the job, not for every machine
    resume_from_checkpoint: str | bool | None = None  # type: ignore[assignment]  # true: from the last checkpoint
    fsdp: str | bool | list[str] | None = None  # type: ignore[assignment]  # transformers documents fsdp=True

    @property
    def packing_length(self) -> int:
        """Returns the most tokens that the segments of a pack may have: `global_max_length`, less those reserved."""
        return self.global_max_length - self._reserved

    def reserve(self, tokens: int) -> None:
        """
        Reserves tokens of each packed forward for the dummy image of an image model; 0 for a text model.

        Raises:
            `ValueError`: no token would be left for segments.
        """
        if tokens >= self.global_max_length:
            raise ValueError(
                f"global_max_length is {self.global_max_length}, but every forward of this image model holds an image, "
                f"and the smallest has {tokens} tokens; raise global_max_length."
            )
        self._reserved = tokens

    @property
    def longest_response(self) -> int:
        """Returns the most tokens that a response may hold, in training or evaluation."""
        return max(self.decoding.max_new_tokens, self.eval_decoding.max_new_tokens)

    @property
    def longest_rollout(self) -> int:
        """Returns the most tokens that an engine needs room for: the longest prompt that packs, and its response."""
        return self.global_max_length + self.longest_response

    def to_dict(self) -> dict[str, Any]:
        """Returns what `TrainingArguments.to_dict` does, with `decoding`, `eval_decoding` and `vllm` as mappings."""
        return {**super().to_dict(), **{name: asdict(getattr(self, name)) for name in _DATACLASSES}}

    def __post_init__(self) -> None:
        self._reserved = 0
        self._convert()
        check_inherited(self)
        init_inherited(super().__post_init__, self)
        # Dispatching an iterable data set from rank 0 would try to slice raw samples as if they were tensors.
        assert isinstance(self.accelerator_config, AcceleratorConfig)
        check_dispatch(self.accelerator_config.dispatch_batches)
        self.accelerator_config.dispatch_batches = False
        if self.device.type == "cpu":  # there is nothing to pin memory for, and torch would warn
            self.dataloader_pin_memory = False
        self._check_together()
        self._reject_data_parallel()
        check_deepspeed(self, skips_steps=self.on_non_finite == "skip")
        start_communication(self)

    def _convert(self) -> None:
        """Checks the arguments that this class adds against their type hints, and turns mappings into dataclasses."""
        for section in (TOP, DATA, TRAINING, ROLLOUT_MATCHING):
            ours = [name for name in section.hints if name in _OURS and name not in _DATACLASSES]
            for name, value in section.read({name: getattr(self, name) for name in ours}).items():
                setattr(self, name, value)
        self.vllm = build(VLLMConfig, "rollout_matching.vllm", self.vllm)
        self.segment_cost = build(SegmentCostConfig, "rollout_matching.segment_cost", self.segment_cost)
        self.decoding = build(Decoding, "rollout_matching.decoding", self.decoding, moved=DECODING_KEYS)
        evaluation: Any = {"temperature": 0.0} if self.eval_decoding is None else self.eval_decoding
        if isinstance(evaluation, Mapping):
            evaluation = {**asdict(self.decoding), **evaluation}
        self.eval_decoding = build(Decoding, "rollout_matching.eval_decoding", evaluation, moved=DECODING_KEYS)

    def _check_together(self) -> None:
        if not self.packing_drop_last:
            self._reject_keeping_the_last()
        if self.validate_schedule != "off" and not self.packing:
            raise ValueError(
                f"rollout_matching.validate_schedule is {self.validate_schedule}, but training.packing is false: there "
                "are no packs to compare. Set it to off."
            )
        taken = sorted(_SET_BY_US.intersection(self.chat_template_kwargs))
        if taken:
            raise ValueError(
                f"data.chat_template_kwargs holds {', '.join(taken)}, which the trainer sets; leave it out."
            )
        check_waves(self)
        if self.rollout_backend == "vllm":
            self.vllm.check_usable()
        else:
            self.vllm.check_unused(self.rollout_backend)

    def _reject_keeping_the_last(self) -> None:
        if self.packing and self.post_rollout_pack_scope == "micro":
            raise ValueError(
                "training.packing_drop_last is false, but scheduling is carry-only: segments left in the carry "
                "buffer when training ends get no extra step. Set packing_drop_last: true, or "
                "rollout_matching.post_rollout_pack_scope: window, which carries nothing."
            )
        scope = f"scope {self.post_rollout_pack_scope} carries nothing" if self.packing else "packing is false"
        raise ValueError(
            f"training.packing_drop_last is false, but {scope}: every segment is trained in its own step, and none is "
            "left to drop when training ends. Leave the key out."
        )

    def _reject_data_parallel(self) -> None:
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs in one process would run torch's DataParallel, which splits a packed row. "
                "Start one process per GPU: accelerate launch --multi_gpu -m rollout_sft.train --config ..."
            )


def _is_training(spec: Field[Any]) -> bool:
    return spec.init and "section" not in spec.metadata


def _section(name: str, keep: Callable[[Field[Any]], bool], **further: Any) -> Section:
    return section_of(name, RolloutSFTConfig, keep=keep, **further)


_OURS = {spec.name for spec in fields(RolloutSFTConfig)} - {spec.name for spec in fields(TrainingArguments)}
TOP = _section("", lambda spec: spec.metadata.get("section") == "top")
"""What stands at the top of the file."""
DATA = _section("data", lambda spec: spec.metadata.get("section") == "data")
"""What the section `data` holds besides the data sets."""
ROLLOUT_MATCHING = _section(
    "rollout_matching",
    lambda spec: spec.metadata.get("section") == "rollout_matching",
    elsewhere=(
        _section("training", _is_training),
        section_of("rollout_matching.decoding", Decoding),
        section_of("rollout_matching.vllm", VLLMConfig),
    ),
    moved=MATCHING_KEYS,
)
"""The section `rollout_matching`."""
TRAINING = _section(
    "training",
    _is_training,
    elsewhere=(ROLLOUT_MATCHING, section_of("rollout_matching.decoding", Decoding)),
    moved=TRAINING_KEYS,
)
"""The section `training`: the fields of `TrainingArguments` and those of packing."""
