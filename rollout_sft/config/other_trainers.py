"""Says where the keys of TRL, ms-swift, verl and transformers' older versions are set here, section by section.

The nearest valid key by spelling would often be a wrong one: `padding_free` resembles `packing_buffer`.
"""

from __future__ import annotations

_LENGTH = "set global_max_length at the top of the file (or template.max_length); nothing is cut to it"
_LENGTH_NAMES = (
    "max_seq_length",
    "max_seq_len",
    "max_length",
    "cutoff_len",
    "model_max_length",
    "block_size",
    "seq_length",
    "ppo_max_token_len_per_gpu",
    "max_tokens_per_gpu",
)
LENGTH_KEYS = dict.fromkeys(_LENGTH_NAMES, _LENGTH)
"""Keys under which other trainers take the length of a packed row."""

_ADAPTER = "set model.peft, for instance peft: {peft_type: LORA, r: 16, target_modules: all-linear}"
_LORA = ("use_peft", "lora", "lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules")
_ADAPTERS = dict.fromkeys(
    (*_LORA, "target_modules", "tuner_type", "train_type", "sft_type", "adapters"), _ADAPTER
) | dict.fromkeys(
    ("freeze_vit", "freeze_llm", "freeze_aligner"), "set model.freeze, a list of patterns such as [model.visual.*]"
)
_MODEL_PATH = dict.fromkeys(("path", "model", "model_path", "model_id"), "set model.model_name_or_path")
_QUANTIZED = (
    "load_in_4bit",
    "load_in_8bit",
    "quantization",
    "quantization_bit",
    "quant_bits",
    "quant_method",
)
_ONE_ROLLOUT = "each sample gets one rollout; leave it out"
_OVERSIZED = "nothing is cut; set rollout_matching.on_oversized for segments longer than global_max_length"
_SUPERVISED = "the target builder decides which tokens are trained; set rollout_matching.target_builder"
_NO_REWARD = "nothing is rewarded; a target builder scores answers, so set rollout_matching.target_builder"
_BATCH = (
    "set training.per_device_train_batch_size and training.gradient_accumulation_steps; their product is the samples "
    "of a step on each rank"
)
_COLUMNS = (
    "a record has messages or prompt, and its other columns reach the target builder; rename the columns, or set "
    "source: module:function to a function of your own"
)

TRAINING_KEYS = {
    **LENGTH_KEYS,
    **_ADAPTERS,
    **_MODEL_PATH,
    "peft": _ADAPTER,
    **dict.fromkeys(("rollout_matching", "data", "template"), "it is a section of its own; indent it less"),
    "model_name_or_path": "set model.model_name_or_path",
    **dict.fromkeys(("attn_implementation", "attn_impl"), "set model.attn_implementation"),
    **dict.fromkeys(("dtype", "torch_dtype"), "set model.dtype"),
    "packing_length": "packing_length is derived: set global_max_length or template.max_length instead",
    "global_max_length": "global_max_length stands at the top of the file, outside every section",
    "padding_free": "packs never hold padding; leave it out",
    **dict.fromkeys(
        ("packing_strategy", "packing_mode", "scope"),
        "set rollout_matching.post_rollout_pack_scope: micro, window or global",
    ),
    "lr": "set training.learning_rate",
    "resume": "set training.resume_from_checkpoint: true, or the path of a checkpoint",
    "gradient_clipping": "set training.max_grad_norm",
    "warmup_ratio": "set training.warmup_steps; below 1 it is a share of all steps",
    **dict.fromkeys(("epochs", "total_epochs"), "set training.num_train_epochs"),
    **dict.fromkeys(("total_steps", "total_training_steps", "train_iters"), "set training.max_steps"),
    **dict.fromkeys(
        ("batch_size", "micro_batch_size", "train_micro_batch_size_per_gpu"),
        "set training.per_device_train_batch_size (samples of a micro-batch)",
    ),
    **dict.fromkeys(("global_batch_size", "train_batch_size", "ppo_mini_batch_size"), _BATCH),
    **dict.fromkeys(
        ("grad_accum", "gradient_accumulation", "accumulate_grad_batches"), "set training.gradient_accumulation_steps"
    ),
    **dict.fromkeys(("precision", "mixed_precision"), "set training.bf16: true, or model.dtype for the weights"),
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR; log.jsonl lies in training.output_dir",
    "no_cuda": "set training.use_cpu",
    "shuffle": "set training.train_sampling_strategy: random or sequential",
    **dict.fromkeys(("dataset", "dataset_name", "train_file", "train_files"), "set data.train.source"),
    **dict.fromkeys(("dataset_text_field", "prompt_key"), _COLUMNS),
    **dict.fromkeys(
        ("eos_token", "pad_token", "chat_template", "chat_template_path"),
        "it belongs to the tokenizer; set it there, and give that as model.tokenizer_name_or_path",
    ),
    **dict.fromkeys(("num_generations", "n", "rollout_n"), _ONE_ROLLOUT),
    **dict.fromkeys(("max_completion_length", "response_length"), "set rollout_matching.decoding.max_new_tokens"),
    **dict.fromkeys(("max_prompt_length", "truncation", "truncation_mode", "truncation_strategy"), _OVERSIZED),
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss", "train_on_inputs", "loss_scale"), _SUPERVISED),
    "loss_type": "set rollout_matching.loss_reduction, which says what counts the same in a window",
    **dict.fromkeys(("reward_funcs", "reward_weights"), _NO_REWARD),
    "beta": "there is no reference model; leave it out",
    "use_vllm": "set rollout_matching.rollout_backend: vllm",
    "vllm_mode": "set rollout_matching.vllm.mode",
    "vllm_gpu_memory_utilization": "set rollout_matching.vllm.gpu_memory_utilization",
    "vllm_server_base_url": "set rollout_matching.vllm.base_url",
    "group_by_length": "lengths are known after the rollouts alone; set training.train_sampling_strategy: random",
}
MATCHING_KEYS = {
    **{key: reason for key, reason in TRAINING_KEYS.items() if key != "scope"},
    "training": "it is a section of its own; indent it less",
    "boundary_supervision": "set prefix_supervision: expert, or coordinates for what false stood for",
}
MODEL_KEYS = {
    **dict.fromkeys(("name", "checkpoint"), "set model.model_name_or_path"),
    **dict.fromkeys(
        ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"), "it belongs under model.config, indented more"
    ),
    **_MODEL_PATH,
    **_ADAPTERS,
    **LENGTH_KEYS,
    "trust_remote_code": "code that comes with a model is never run; leave it out",
    **dict.fromkeys(_QUANTIZED, "set model.quantization_config, such as {load_in_4bit: true}, and model.peft"),
}
DATA_KEYS = {
    "source": "set data.train.source, or data.eval.source",
    **dict.fromkeys(("val", "validation", "test", "dev"), "set data.eval"),
    **dict.fromkeys(("train_file", "train_files"), "set data.train.source"),
    **dict.fromkeys(("val_file", "val_files", "test_files"), "set data.eval.source"),
    **{key: TRAINING_KEYS[key] for key in ("batch_size", "train_batch_size", "max_prompt_length", "shuffle")},
    "max_response_length": TRAINING_KEYS["max_completion_length"],
    **LENGTH_KEYS,
}
SOURCE_KEYS = {
    **dict.fromkeys(("path", "file", "files", "dataset"), "set source"),
    **dict.fromkeys(("limit", "max_samples", "num_samples"), "set size"),
    **dict.fromkeys(("prompt_key", "text_column", "columns", "dataset_text_field"), _COLUMNS),
    **{key: TRAINING_KEYS[key] for key in ("batch_size", "max_prompt_length", "shuffle")},
    "boxes": "set data.boxes, which holds for data.train and data.eval",
    **LENGTH_KEYS,
}
DECODING_KEYS = {
    **dict.fromkeys(("n", "num_return_sequences", "num_generations"), _ONE_ROLLOUT),
    "do_sample": "set temperature; 0 is greedy",
    "num_beams": "there is no beam search; leave it out",
    **dict.fromkeys(
        ("stop", "stop_token_ids", "eos_token_id"),
        "a response ends at the end tokens of generation_config and the tokenizer; set rollout_matching.end_tokens for "
        "further ones",
    ),
    "max_length": "set max_new_tokens, which does not count the prompt",
}
