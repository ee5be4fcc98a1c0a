"""`RolloutSFTConfig` made in Python: the same checks as in a file, dataclasses of mappings, and back to JSON."""

import json
import math
import re
import typing
from dataclasses import replace

import pytest
from transformers import TrainingArguments

from rollout_sft import RolloutSFTConfig
from rollout_sft.config.decoding import Decoding
from rollout_sft.config.inherited_arguments import RANGES
from rollout_sft.config.run import load_run
from rollout_sft.config.vllm import VLLMConfig
from tests.tiny import tiny_arguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"post_rollout_pack_scope": "batch"},
            "rollout_matching.post_rollout_pack_scope is 'batch'; it takes micro | ",
        ),
        ({"packing_buffer": 0}, "training.packing_buffer is 0; it takes 1 segment or more."),
        ({"packing_buffer": "many"}, "training.packing_buffer is 'many'; it takes an integer."),
        ({"global_max_length": 0}, "global_max_length is 0; it takes the tokens of the longest packed forward"),
        ({"reference_fraction": float("nan")}, "rollout_matching.reference_fraction is nan; it takes a finite number."),
        ({"decoding": {"max_tokens": 3}}, "unknown key rollout_matching.decoding.max_tokens: the nearest valid key is"),
        ({"decoding": {"top_p": 2}}, "rollout_matching.decoding.top_p is 2.0; it takes more than 0 and at most 1."),
        ({"decoding": 5}, "rollout_matching.decoding is 5; it takes a mapping of keys to values."),
        ({"eval_decoding": {"top_k": "x"}}, "rollout_matching.eval_decoding.top_k is 'x'; it takes an integer."),
        ({"vllm": {"mode": "remote"}}, "rollout_matching.vllm.mode is 'remote'; it takes colocate | server."),
        ({"callbacks": "a:b"}, "training.callbacks is 'a:b'; it takes a list."),
    ],
)
def test_bad_values_are_refused_in_python_as_in_a_file(tmp_path, given, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        tiny_arguments(tmp_path, **given)


@pytest.mark.parametrize(
    ("decoding", "evaluation", "expected"),
    [
        ({"temperature": 0.7, "top_k": 5}, None, Decoding(temperature=0.0, top_k=5)),
        ({"temperature": 0.7, "top_k": 5}, {"top_k": 9}, Decoding(temperature=0.7, top_k=9)),
        (Decoding(temperature=0.7), {"max_new_tokens": 3}, Decoding(temperature=0.7, max_new_tokens=3)),
        ({"temperature": 0.7}, Decoding(top_p=0.5), Decoding(top_p=0.5)),
    ],
)
def test_evaluation_decodes_as_training_but_for_what_is_given(tmp_path, decoding, evaluation, expected):
    config = tiny_arguments(tmp_path, decoding=decoding, eval_decoding=evaluation)
    assert config.eval_decoding == expected
    assert config.decoding == (decoding if isinstance(decoding, Decoding) else Decoding(**decoding))


def test_the_longest_rollout_has_room_for_both_kinds_of_response(tmp_path):
    def longest(training, evaluation):
        overrides = {"decoding": {"max_new_tokens": training}, "eval_decoding": {"max_new_tokens": evaluation}}
        config = tiny_arguments(tmp_path, global_max_length=100, **overrides)
        return config.longest_response, config.longest_rollout

    assert longest(7, 5) == (7, 107)
    assert longest(5, 9) == (9, 109)


def test_arguments_survive_json_and_make_the_same_arguments(tmp_path):
    config = tiny_arguments(
        tmp_path,
        decoding={"temperature": 0.7},
        eval_decoding={"max_new_tokens": 5},
        rollout_backend="vllm",
        vllm={"mode": "server", "base_url": ["http://a:1"], "engine_args": {"block_size": 16}},
    )
    written = json.loads(config.to_json_string())
    assert written["decoding"]["temperature"] == 0.7
    assert written["vllm"]["engine_args"] == {"block_size": 16}
    again = RolloutSFTConfig(**written)
    for name in ("decoding", "eval_decoding", "vllm", "callbacks", "post_rollout_pack_scope"):
        assert getattr(again, name) == getattr(config, name), name
    assert replace(config, max_steps=3).eval_decoding == config.eval_decoding
    assert "'max_new_tokens': 5" in str(config)


def test_a_section_that_its_backend_does_not_read_is_refused_by_name(tmp_path):
    unusable = {"mode": "server", "retries": 0}
    with pytest.raises(ValueError, match=r"vllm sets mode, retries, but rollout_matching.rollout_backend is hf, which"):
        tiny_arguments(tmp_path, vllm=unusable)
    with pytest.raises(ValueError, match=r"vllm\.base_url is missing"):
        tiny_arguments(tmp_path, vllm=unusable, rollout_backend="vllm")
    assert tiny_arguments(tmp_path, vllm={"mode": "colocate"}).vllm == VLLMConfig(), "the defaults change nothing"


@pytest.mark.parametrize("value", [1, 1.0, "1"])
def test_numbers_are_converted_to_the_type_of_their_field(tmp_path, value):
    config = tiny_arguments(tmp_path, reference_fraction=value, packing_buffer=value)
    assert (config.reference_fraction, config.packing_buffer) == (1.0, 1)
    assert (type(config.reference_fraction), type(config.packing_buffer)) == (float, int)


def test_memory_is_not_pinned_where_there_is_no_accelerator(tmp_path):
    assert not RolloutSFTConfig(output_dir=str(tmp_path), report_to="none", global_max_length=8).dataloader_pin_memory


TAKEN = {
    # which of -1, 0 and 2 each key takes; none takes infinity or NaN
    (0,): "adam_beta1 adam_beta2 label_smoothing_factor neftune_noise_alpha",
    (0, 2): "learning_rate weight_decay warmup_steps max_grad_norm eval_delay num_train_epochs dataloader_num_workers "
    "seed data_seed",
    (2,): "gradient_accumulation_steps per_device_train_batch_size per_device_eval_batch_size adam_epsilon "
    "logging_steps save_steps eval_steps save_total_limit eval_accumulation_steps torch_empty_cache_steps "
    "dataloader_prefetch_factor ddp_bucket_cap_mb ddp_timeout",
    (-1, 2): "max_steps",
    (-1, 0, 2): "local_rank",
}
TAKES = {name: values for values, names in TAKEN.items() for name in names.split()}
WITH = {
    "num_train_epochs": {"max_steps": 5},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "eval_steps": {"eval_strategy": "steps"},
    "save_steps": {"save_strategy": "steps"},
}


def test_every_number_of_the_trainer_is_named_with_what_it_takes(tmp_path):
    hints = typing.get_type_hints(TrainingArguments)
    members = {name: {hint, *typing.get_args(hint)} for name, hint in hints.items() if not name.startswith("_")}
    assert {name for name, kinds in members.items() if kinds & {int, float}} == set(TAKES), "a new key needs a range"
    for name, takes in TAKES.items():
        for value in (-1, 0, 2, math.inf, math.nan):
            if value in takes:
                assert getattr(tiny_arguments(tmp_path, **{**WITH.get(name, {}), name: value}), name) == value
                continue
            what = "takes" if name in RANGES or not math.isfinite(value) else "is refused"
            with pytest.raises(ValueError, match=rf"^training\.{name} is {value}[^ ]* .*{what}") as raised:
                tiny_arguments(tmp_path, **{**WITH.get(name, {}), name: value})
            assert len(str(raised.value)) < 200
        if name in RANGES and float not in members[name]:
            with pytest.raises(ValueError, match=rf"^training\.{name} is 1\.5; it takes "):
                tiny_arguments(tmp_path, **{**WITH.get(name, {}), name: 1.5})


@pytest.mark.parametrize(
    "line",
    ["max_grad_norm: -1", "warmup_steps: -2", "dataloader_num_workers: -1", "adam_beta1: 2", "save_total_limit: 0"],
)
def test_numbers_of_a_file_are_refused_before_anything_is_loaded(tmp_path, line):
    path = tmp_path / "run.yaml"
    parts = "global_max_length: 64\nmodel: {model_name_or_path: /nowhere}\ndata: {train: {source: nowhere.jsonl}}\n"
    path.write_text(f"{parts}training: {{{line}}}\n")
    name = line.split(":")[0]
    with pytest.raises(ValueError, match=rf"training\.{name} is .*; it takes "):
        load_run(path)
