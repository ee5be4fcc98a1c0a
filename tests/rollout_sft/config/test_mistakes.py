"""Mistakes in a YAML file: the error names the key, the nearest valid one and what it takes."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments

FIELDS = {field.name for field in fields(TrainingArguments)}  # activation_checkpointing only in newer releases

ERRORS = {
    "resume instead of its full name": (
        "training: {resume: true}",
        "training.resume is refused: set training.resume_from_checkpoint: true, or the path",
    ),
    "clipping by another name": (
        "training: {gradient_clipping: 1.0}",
        "training.gradient_clipping is refused: set training.max_grad_norm",
    ),
    "warm-up as a ratio": (
        "training: {warmup_ratio: 0.1}",
        "training.warmup_ratio is refused: set training.warmup_steps; below 1 it is a share of all steps",
    ),
    "a reporter that does not exist": (
        "training: {report_to: wandbb}",
        "training.report_to is 'wandbb'; it takes a list",
    ),
    "no epoch and no step": (
        "training: {num_train_epochs: -1}",
        "training.num_train_epochs is -1.0 and max_steps -1, so nothing would be trained",
    ),
    "evaluation without data": (
        "training: {eval_strategy: steps, eval_steps: 10}\ndata: {eval: null}",
        "training.eval_strategy is steps, but data.eval is missing",
    ),
    "rank of a LoRA": (
        "model: {model_name_or_path: some/path, config: null, peft: {peft_type: LORA, rank: 8}}",
        "unknown key model.peft.rank: the nearest valid key is r ",
    ),
    "unknown section": (
        "rollout_matchin: {}",
        "unknown key rollout_matchin: the nearest valid key is rollout_matching",
    ),
    "misspelt key": (
        "rollout_matching: {post_rollout_pack_scop: window}",
        "unknown key rollout_matching.post_rollout_pack_scop: the nearest valid key is post_rollout_pack_scope, "
        r"which takes micro \| window",
    ),
    "misspelt training key": (
        "training: {learning_rat: 0.1}",
        "unknown key training.learning_rat: the nearest valid key is learning_rate, which takes a number",
    ),
    "key in the wrong section": (
        "training: {post_rollout_pack_scope: window}",
        r"training.post_rollout_pack_scope: it belongs under rollout_matching:, where it takes micro \| window",
    ),
    "unknown scope": (
        "rollout_matching: {post_rollout_pack_scope: batch}",
        r"rollout_matching.post_rollout_pack_scope is 'batch'; it takes micro \| window",
    ),
    "unknown decoding knob": (
        "rollout_matching: {decoding: {max_tokens: 3}}",
        "rollout_matching.decoding.max_tokens: the nearest valid key is max_new_tokens, which takes an integer",
    ),
    "boundary_supervision": (
        "rollout_matching: {boundary_supervision: true}",
        "rollout_matching.boundary_supervision is refused: set prefix_supervision: expert",
    ),
    "prefix_supervision": (
        "rollout_matching: {prefix_supervision: true}",
        "rollout_matching.prefix_supervision.*coordinates",
    ),
    "packing_length": ("training: {packing_length: 4}", "training.packing_length is refused.*global_max_length"),
    "packing_drop_last": ("training: {packing_drop_last: false}", "training.packing_drop_last is false.*window"),
    "text for a number": ("training: {packing_buffer: many}", "training.packing_buffer is 'many'; it takes an integer"),
    "truth for a number": ("training: {packing_buffer: true}", "training.packing_buffer is True; it takes an integer"),
    "number for a truth": ("training: {packing: 3}", "training.packing is 3; it takes true or false"),
    "buffer of zero": ("training: {packing_buffer: 0}", "training.packing_buffer is 0; it takes 1 segment or more"),
    "ratio": ("training: {packing_min_fill_ratio: 1.5}", "training.packing_min_fill_ratio is 1.5; it takes a share"),
    "length of zero": ("global_max_length: 0", "global_max_length is 0; it takes"),
    "two lengths": ("template: {max_length: 3}", "disagree; both give packing_length"),
    "variant": ("custom: {trainer_variant: sft}", "custom.trainer_variant is 'sft'; it takes rollout_matching_sft"),
    "section that is a list": ("training: [1]", "training is .*; it takes a mapping"),
    "two models": ("model: {model_name_or_path: x}", "either model_name_or_path or config"),
    "model key": ("model: {attn: sdpa}", "unknown key model.attn: the nearest valid key is attn_implementation"),
    "data key": ("data: {train: {sourc: digits}}", "unknown key data.train.sourc: the nearest valid key is source"),
    "dtype": ("model: {dtype: half}", r"model.dtype is 'half'; it takes float32 \| bfloat16"),
    "label smoothing": (
        "training: {label_smoothing_factor: 0.1}",
        "training.label_smoothing_factor is 0.1, which is refused",
    ),
    "auto batch size": (
        "training: {auto_find_batch_size: true}",
        "training.auto_find_batch_size is True, which is refused",
    ),
    "NEFTune": ("training: {neftune_noise_alpha: 5.0}", "training.neftune_noise_alpha is 5.0, which is refused"),
    "reference fraction": (
        "rollout_matching: {reference_fraction: 2}",
        "reference_fraction is 2.*share between 0 and 1",
    ),
    "strategy": (
        "training: {save_strategy: stepz}",
        r"training.save_strategy is 'stepz'; it takes no \| steps \| epoch \| best",
    ),
    "truth for a strategy": (
        "training: {save_strategy: false}",
        r"training.save_strategy is False; it takes no \| steps \| epoch \| best\.",
    ),
    "optimizer": ("training: {optim: adam}", r"training.optim is 'adam'; it takes adamw_torch \|"),
    "scheduler": (
        "training: {lr_scheduler_type: cosin}",
        r"training.lr_scheduler_type is 'cosin'; it takes linear \| cosine \|",
    ),
    "sampling": (
        "training: {train_sampling_strategy: sequentially}",
        r"training.train_sampling_strategy is 'sequentially'; it takes random \| sequential \|",
    ),
    "debug": ("training: {debug: underflow}", r"training.debug is 'underflow'; it takes underflow_overflow \|"),
    "decoding value": (
        "rollout_matching: {decoding: {top_p: 2}}",
        r"rollout_matching\.decoding\.top_p is 2.0; it takes more than 0",
    ),
    "evaluation's decoding value": (
        "rollout_matching: {decoding: {top_p: 0.5}, eval_decoding: {temperature: -1}}",
        r"rollout_matching\.eval_decoding\.temperature is -1.0; it takes 0",
    ),
    "dispatched batches": (
        "training: {accelerator_config: {dispatch_batches: true}}",
        "training.accelerator_config.dispatch_batches is True, which is refused: .*raw samples.*Leave it out",
    ),
    "accelerator key": (
        "training: {accelerator_config: {dispatch: true}}",
        "unknown key training.accelerator_config.dispatch: it takes split_batches, dispatch_batches",
    ),
    "removed columns": (
        "training: {remove_unused_columns: true}",
        "training.remove_unused_columns is True, which is refused: .*target builder",
    ),
    "best model": (
        "training: {load_best_model_at_end: true}",
        "training.load_best_model_at_end is True, but training.metric_for_best_model is not given.*"
        "no eval_loss.*eval_rollout/f1",
    ),
    "best checkpoint": (
        "training: {save_strategy: best}",
        "training.save_strategy is best, but training.metric_for_best_model is not given",
    ),
    "plateau": (
        "training: {lr_scheduler_type: reduce_lr_on_plateau, eval_strategy: epoch}",
        "training.lr_scheduler_type is reduce_lr_on_plateau, but training.metric_for_best_model is not given",
    ),
    "evaluation in bfloat16": (
        "training: {bf16_full_eval: true}",
        "training.bf16_full_eval is True, which is refused: evaluation generates with the model as it is trained",
    ),
    "evaluation in float16": (
        "training: {fp16_full_eval: true}",
        "training.fp16_full_eval is True, which is refused: evaluation generates with the model as it is trained",
    ),
    "off below a mapping of any values": (
        "model: {config: {attention_bias: off}}",
        "model.config.attention_bias is 'off', which is text in YAML 1.2; it takes true or false",
    ),
    "duplicate key": ("training: {seed: 1, seed: 2}", "line 2: the key 'seed' is given twice"),
    "stage names": ("stages: [{name: a}, {name: a}]", "stages have the names"),
    "stages that are no list": ("stages: {name: a}", "stages is .*; it takes a list"),
    "maximum length under training": (
        "training: {max_seq_length: 4096}",
        r"training\.max_seq_length is refused: set global_max_length at the top of the file",
    ),
    "cut-off under training": ("training: {cutoff_len: 9}", r"training\.cutoff_len is refused: set global_max_length"),
    "cut-off at the top": ("cutoff_len: 9", r"cutoff_len is refused: set global_max_length .*nothing is cut to it"),
    "cut-off in the template": ("template: {cutoff_len: 9}", r"template\.cutoff_len is refused: set global_max_length"),
    "new tokens outside of decoding": (
        "rollout_matching: {max_new_tokens: 64}",
        r"rollout_matching\.max_new_tokens: it belongs under rollout_matching\.decoding:, where it takes an integer",
    ),
    "temperature outside of decoding": (
        "rollout_matching: {temperature: 0.7}",
        r"rollout_matching\.temperature: it belongs under rollout_matching\.decoding:, where it takes a number",
    ),
    "new tokens under training": (
        "training: {max_new_tokens: 64}",
        r"training\.max_new_tokens: it belongs under rollout_matching\.decoding:",
    ),
    "server outside of vllm": (
        "rollout_matching: {base_url: 'http://a'}",
        r"rollout_matching\.base_url: it belongs under rollout_matching\.vllm:, where it takes text",
    ),
    "buffer in the wrong section": (
        "rollout_matching: {packing_buffer: 3}",
        r"rollout_matching\.packing_buffer: it belongs under training:, where it takes an integer",
    ),
    "training key at the top": (
        "learning_rate: 1e-4",
        "learning_rate: it belongs under training:, where it takes a num",
    ),
    "model key at the top": ("dtype: float16", r"dtype: it belongs under model:, where it takes float32 \|"),
    "data at the top": ("train: {source: a}", r"^train is refused: set data\.train\.$"),
    "data that is a file": (
        "data: {train: file.jsonl}",
        r"data\.train is 'file\.jsonl'; it takes a mapping\. Write train: \{source: 'file\.jsonl'\}\.",
    ),
    "data that is a list": ("data: {eval: [a.jsonl]}", r"data\.eval is \['a\.jsonl'\].* Write eval: \{source: \['a"),
    "validation data": ("data: {validation: {source: a}}", r"data\.validation is refused: set data\.eval"),
    "source without its set": ("data: {source: a}", r"data\.source is refused: set data\.train\.source"),
    "path of the data": ("data: {train: {path: a}}", r"data\.train\.path is refused: set source"),
    "limit of the data": ("data: {eval: {max_samples: 3}}", r"data\.eval\.max_samples is refused: set size"),
    "model that is a name": (
        "model: qwen3",
        r"model is 'qwen3'; it takes a mapping\. Write model: \{model_name_or_path: 'qwen3'\}",
    ),
    "type of the model": ("model: {torch_dtype: bfloat16}", r"model\.torch_dtype: the nearest valid key is dtype"),
    "rate by its short name": ("training: {lr: 1e-4}", r"training\.lr is refused: set training\.learning_rate"),
    "batch by its short name": ("training: {batch_size: 3}", "batch_size is refused: set training.per_device_train_b"),
    "adapter under training": ("training: {lora_r: 16}", r"training\.lora_r is refused: set model\.peft, for instance"),
    "the last segments in scope window": (
        "{training: {packing_drop_last: false}, rollout_matching: {post_rollout_pack_scope: window}}",
        "packing_drop_last is false, but scope window carries nothing: .*none is left to drop.*Leave the key out",
    ),
    "the last segments without packs": (
        "training: {packing_drop_last: false, packing: false}",
        "packing_drop_last is false, but packing is false: .*Leave the key out",
    ),
    "what happens to long segments": (
        "rollout_matching: {on_oversized: cut}",
        r"on_oversized is 'cut'; it takes raise \| sk",
    ),
    "decoding that is a number": ("rollout_matching: {decoding: 0.7}", r"decoding is 0\.7; it takes a mapping"),
    "file of DeepSpeed": (
        "training: {deepspeed: none.json}",
        r"training\.deepspeed is 'none\.json', but there is no such",
    ),
    "TRL: padding_free": (
        "training: {padding_free: true}",
        r"^training\.padding_free is refused: packs never hold pad",
    ),
    "TRL: packing_strategy": (
        "training: {packing_strategy: bfd}",
        r"^training\.packing_strategy is refused: set rollout_matching\.post_rollout_pack_scope",
    ),
    "TRL: num_generations": ("training: {num_generations: 8}", "num_generations is refused: each sample gets one roll"),
    "TRL: max_completion_length": (
        "training: {max_completion_length: 256}",
        r"^training\.max_completion_length is refused: set rollout_matching\.decoding\.max_new_tokens",
    ),
    "TRL: max_prompt_length": (
        "training: {max_prompt_length: 256}",
        r"max_prompt_length is refused: nothing is cut; set rollout_matching\.on_oversized",
    ),
    "TRL: completion_only_loss": (
        "training: {completion_only_loss: true}",
        r"completion_only_loss is refused: .*set rollout_matching\.target_builder",
    ),
    "TRL: loss_type": ("training: {loss_type: dapo}", r"loss_type is refused: set rollout_matching\.loss_reduction"),
    "TRL: use_vllm": (
        "training: {use_vllm: true}",
        r"use_vllm is refused: set rollout_matching\.rollout_backend: vllm",
    ),
    "TRL: memory of vLLM": (
        "rollout_matching: {vllm_gpu_memory_utilization: 0.5}",
        r"is refused: set rollout_matching\.vllm\.gpu_memory_utilization",
    ),
    "TRL: column of the text": (
        "training: {dataset_text_field: text}",
        "dataset_text_field is refused: a record has messages or prompt.*source: module:function",
    ),
    "ms-swift: tuner_type": ("training: {tuner_type: lora}", r"tuner_type is refused: set model\.peft, for instance"),
    "ms-swift: truncation_strategy": (
        "training: {truncation_strategy: delete}",
        r"truncation_strategy is refused: .*set rollout_matching\.on_oversized",
    ),
    "ms-swift: attn_impl": ("training: {attn_impl: sdpa}", r"attn_impl is refused: set model\.attn_implementation"),
    "ms-swift: freeze_vit": (
        "model: {freeze_vit: true}",
        r"model\.freeze_vit is refused: set model\.freeze, a list of",
    ),
    "ms-swift: quantization": (
        "model: {load_in_4bit: true}",
        r"load_in_4bit is refused: set model\.quantiz",
    ),
    "verl: path of the model": ("model: {path: a/b}", r"^model\.path is refused: set model\.model_name_or_path"),
    "verl: files": ("data: {train_files: a.parquet}", r"^data\.train_files is refused: set data\.train\.source"),
    "verl: batch of the data": (
        "data: {train_batch_size: 8}",
        r"^data\.train_batch_size is refused: set training\.per_device_train_batch_size and",
    ),
    "verl: length on a GPU": (
        "training: {ppo_max_token_len_per_gpu: 9}",
        "ppo_max_token_len_per_gpu is refused: set global_max_length",
    ),
    "verl: steps": ("training: {total_training_steps: 9}", r"total_training_steps is refused: set training\.max_steps"),
    "verl: samples of a prompt": (
        "rollout_matching: {decoding: {n: 8}}",
        r"^rollout_matching\.decoding\.n is refused: each sample gets one rollout",
    ),
    "greedy by another name": (
        "rollout_matching: {decoding: {do_sample: false}}",
        r"decoding\.do_sample is refused: set temperature; 0 is greedy",
    ),
    "a section that is indented too far": (
        "training: {rollout_matching: {end_rollouts: never}}",
        r"^training\.rollout_matching is refused: it is a section of its own; indent it less",
    ),
    "a key that is like no other": (
        "training: {wombat: 3}",
        r"^unknown key training\.wombat: none of the \d+ keys of training is like it; docs/configuration\.md says ",
    ),
    "steps of no evaluation": (
        "training: {eval_steps: 10}",
        r"^training\.eval_steps is 10\.0, but training\.eval_strategy is no.*Set eval_strategy: steps, or remove",
    ),
    "type of the weights in the configuration": (
        "model: {config: {torch_dtype: bfloat16}}",
        r"^model\.config\.torch_dtype is 'bfloat16', but the weights get model\.dtype, which is float32\. Set",
    ),
    "type of the model outside of its configuration": (
        "model: {model_type: qwen3}",
        r"^model\.model_type is refused: it belongs under model\.config, indented more",
    ),
    "Lightning: precision": (
        "training: {precision: bf16}",
        r"precision is refused: set training\.bf16: true, or model",
    ),
    "Lightning: accumulation": (
        "training: {accumulate_grad_batches: 3}",
        r"accumulate_grad_batches is refused: set training\.gradient_accumulation_steps",
    ),
    "folder of the log": ("training: {logging_dir: a}", r"logging_dir is refused: .*TENSORBOARD_LOGGING_DIR"),
    "order by length": (
        "training: {train_sampling_strategy: group_by_length}",
        r"^training\.train_sampling_strategy is group_by_length, which is refused: .*Set it to random or sequential",
    ),
    "text for keywords of the schedule": (
        "training: {lr_scheduler_kwargs: min_lr}",
        r"^training\.lr_scheduler_kwargs is 'min_lr'; it takes a mapping",
    ),
    **{
        f"keyword of {name}": (
            f"training: {{{name}: {{reentrant: false}}}}",
            rf"^unknown key training\.{name}\.reentrant: it takes use_reentrant, ",
        )
        for name in sorted({"activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"} & FIELDS)
    },
    "no output folder": (
        "training: {output_dir: ''}",
        r"^training\.output_dir is empty; it takes the path of a folder",
    ),
    "a mistake in one stage": (
        "stages: [{name: a}, {name: b, training: {lr: 1e-4}}]",
        r"^stage b: training\.lr is refused: set training\.learning_rate",
    ),
    "a mistake that all stages have": (
        "{training: {lr: 1e-4}, stages: [{name: a}, {name: b}]}",
        r"^training\.lr is refused: set training\.learning_rate",
    ),
    "model of a later stage": (
        "stages: [{name: a}, {name: b, model: {model_name_or_path: out/own, config: null}}]",
        r"^stage b: model\.model_name_or_path is 'out/own', but a stage starts from the weights of the one before; ",
    ),
    "configuration of a later stage": (
        "stages: [{name: a}, {name: b, model: {config: {hidden_size: 48}}}]",
        r"^stage b: model\.config is \{'hidden_size': 48\}, but a stage starts .*run the stage as a file of its own\.$",
    ),
    "two types of half precision": (
        "{training: {bf16: true}, model: {dtype: float16}}",
        r"^training\.bf16 is True, which computes in bfloat16, but model\.dtype is float16\. Set model\.dtype: ",
    ),
    "extends in a stage": (
        "stages: [{name: a}, {name: b, extends: base.yaml}]",
        r"^stage b: extends is refused: it stands at the top of a file alone; write what the stage overrides into it",
    ),
    "warm-up in percent": (
        "training: {warmup_steps: 10%}",
        r"warmup_steps is '10%'; it takes a number; 10% is 0\.1\.$",
    ),
    "references in percent": (
        "rollout_matching: {reference_fraction: 50 %}",
        r"reference_fraction is '50 %'; it takes a number; 50 % is 0\.5\.$",
    ),
    "not YAML": ("training: {", "not valid YAML"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_files_are_refused_with_the_key_and_what_it_takes(load_over, name):
    text, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        load_over(text)


def test_a_hundred_mistakes_are_covered():
    assert len(ERRORS) >= 100
