"""Damaged and hostile configurations: file, line or key, a short message, at most 2 s and 200 MB."""

import re

import pytest

from rollout_sft.config.run import load_run
from tests.limits import refusal
from tests.tiny import tiny_arguments

GOOD = """
global_max_length: 512
model: {config: {model_type: qwen3}, tokenizer_name_or_path: a:b}
data: {train: {source: c:d}}
training: {output_dir: out, use_cpu: true, report_to: none}
"""


def in_training(text):
    return f"extends: good.yaml\ntraining: {text}\n"


BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else '1'}]\n" for i in range(12))
HOSTILE = {
    "a list as a key": ("training: {[1, 2]: 3}", r"bad.yaml, line 1: a key is a list or a mapping"),
    "a mapping as a key": ("training:\n  ? {a: 1}\n  : 3", r"bad.yaml, line 2: a key is a list or a mapping"),
    "3,000 open brackets": ("training: " + "[" * 3000, r"bad.yaml, line 1: more than 32 mappings and lists"),
    "3,000 open braces": ("training: " + "{a: " * 3000, r"bad.yaml, line 1: more than 32 mappings and lists"),
    "3,000 dashes": ("- " * 3000, r"bad.yaml, line 1: more than 32 mappings and lists"),
    "an alias bomb": (BOMB, r"bad.yaml, line \d+: more than 5000 values, aliases counted"),
    "a long chain of aliases": (
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 1500)),
        r"bad.yaml, line 32: more than 32 mappings and lists",
    ),
    "a list that holds itself": ("training: &a [*a]", r"bad.yaml, line 1: an alias stands for something that holds it"),
    "a mapping that holds itself": ("training: &a\n  b: {c: *a}", r"bad.yaml, line 2: an alias stands for something"),
    "an integer of 5,000 digits": (in_training("{seed: " + "9" * 5000 + "}"), r"bad.yaml, line 2: a number of 5000"),
    "a float of 5,000 digits": (in_training("{learning_rate: 1." + "9" * 5000 + "}"), r"line 2: a number of 5002"),
    "a date in a month that is none": (in_training("{seed: 2024-13-01}"), "training.seed is '2024-13-01'; it takes an"),
    "a tagged date": (in_training("{seed: !!timestamp 2024-13-01}"), r"bad.yaml, line 2: not valid YAML"),
    "a tagged word": (in_training("{packing: !!bool x}"), r"bad.yaml, line 2: 'x' is no bool"),
    "a tagged mapping": (in_training("{packing: !!int {a: 1}}"), r"bad.yaml, line 2"),
    "a value of 10 MB": (in_training("{seed: " + "x" * 10_000_000 + "}"), "bad.yaml is larger than 262144 bytes"),
    "a value of 200 kB": (in_training("{seed: " + "x" * 200_000 + "}"), r"training.seed is 'xxx.*\.\.\..*it takes an"),
    "a key of 200 kB": (in_training("{? " + "x" * 200_000 + " : 1}"), r"unknown key training.xxx.*\.\.\."),
    "an alias of 200 kB": ("training: *" + "x" * 200_000, r"bad.yaml, line 1: not valid YAML: found undefined alias"),
    "100,000 values": ("training: [" + "1," * 100_000 + "]", "bad.yaml, line 1: more than 5000 values"),
    "10,000 keys": ("".join(f"k{i}: 1\n" for i in range(10_000)), r"bad.yaml, line \d+: more than 5000 values"),
    "a zero byte": ('extends: "a\\0b"', "is no path of a file"),
    "a path of 10 kB": ("extends: " + "x" * 10_000, "is no path of a file"),
    "a list to extend": ("extends: [good.yaml]", r"bad.yaml: extends is \['good.yaml'\]; it takes the path of a file"),
    "a folder to extend": ("extends: .", "there is no configuration file"),
    "a control character": ("training: \x01", "bad.yaml is not valid YAML"),
    "deepspeed that is no file": (
        in_training("{deepspeed: x}"),
        "training.deepspeed is 'x', but there is no such file",
    ),
    "FSDP that is no file": (in_training("{fsdp_config: x}"), "training.fsdp_config is 'x', but there is no such file"),
    "no micro-batch": (in_training("{gradient_accumulation_steps: 0}"), "gradient_accumulation_steps is 0; it takes 1"),
    "less than none": (in_training("{gradient_accumulation_steps: -1}"), "gradient_accumulation_steps is -1; it takes"),
    "no sample": (
        in_training("{per_device_train_batch_size: 0}"),
        "per_device_train_batch_size is 0; it takes 1 sample",
    ),
    "a seed below 0": (in_training("{seed: -1}"), "training.seed is -1; it takes 0 to 4294967295"),
    "an infinite rate": (
        in_training("{learning_rate: .inf}"),
        "training.learning_rate is inf; it takes a finite number",
    ),
    "a rate that is no number": (
        in_training("{learning_rate: .nan}"),
        "training.learning_rate is nan; it takes a finite",
    ),
    "an infinite clip": (in_training("{max_grad_norm: -.inf}"), "training.max_grad_norm is -inf; it takes a finite"),
    "infinite epochs": (in_training("{num_train_epochs: .inf}"), "training.num_train_epochs is inf; it takes a finite"),
    "an infinite temperature": (
        "extends: good.yaml\nrollout_matching: {decoding: {temperature: .inf}}",
        "rollout_matching.decoding.temperature is inf; it takes a finite number",
    ),
    "no samples": ("extends: good.yaml\ndata: {train: {size: 0}}", "data.train.size is 0; it takes 1 sample or more"),
    "less than no samples": ("extends: good.yaml\ndata: {train: {size: -1}}", "data.train.size is -1; it takes 1"),
    "a stage called ..": ("extends: good.yaml\nstages: [{name: ..}]", r"'\.\.' is refused"),
    "a stage called .": ("extends: good.yaml\nstages: [{name: .}, {name: b}]", r"'\.' is refused"),
    "a stage of 10,000 letters": ("extends: good.yaml\nstages: [{name: " + "x" * 10_000 + "}]", "'xxx.*is refused"),
    "33 stages": (
        "stages:\n" + "".join(f"- name: s{i}\n" for i in range(33)),
        "stages has 33 entries; it takes at most",
    ),
    "a setting that transformers refuses": (in_training("{tf32: 5, lr_scheduler_kwargs: 3}"), "training."),
}


@pytest.fixture
def good(tmp_path, monkeypatch):
    (tmp_path / "good.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_within_the_limits(good, name):
    text, message = HOSTILE[name]
    (good / "bad.yaml").write_text(text)
    refused = refusal(load_run, good / "bad.yaml")
    assert refused is not None
    assert re.search(message, refused, re.DOTALL), refused


def test_a_file_that_is_not_utf8_is_refused_with_its_line(good):
    (good / "bad.yaml").write_bytes(b"extends: good.yaml\n# caf\xe9\n")
    assert refusal(load_run, good / "bad.yaml") == (
        "bad.yaml, line 2: not UTF-8 (invalid continuation byte); save the file as UTF-8."
    )


def test_a_byte_order_mark_is_no_part_of_the_file(good):
    (good / "marked.yaml").write_bytes(b"\xef\xbb\xbfextends: good.yaml\n")
    assert load_run(good / "marked.yaml")[0].training.packing_length == 512


def test_1500_chained_files_are_refused(good):
    for i in range(1500):
        (good / f"c{i}.yaml").write_text(f"extends: c{i + 1}.yaml\n")
    (good / "c1500.yaml").write_text(GOOD)
    assert refusal(load_run, good / "c0.yaml") == ("c0.yaml extends more than 15 files one after another; merge some.")
    assert load_run(good / "c1486.yaml")[0].training.packing_length == 512
    assert load_run(good / "c1485.yaml")[0].training.packing_length == 512


def test_the_size_counts_over_all_files_that_are_extended(good):
    padding = "# " + "x" * 100_000 + "\n"
    (good / "b.yaml").write_text(padding + "extends: c.yaml\n")
    (good / "c.yaml").write_text(padding + "extends: good.yaml\n")
    assert load_run(good / "b.yaml")[0].training.packing_length == 512
    (good / "a.yaml").write_text(padding + "extends: b.yaml\n")
    assert refusal(load_run, good / "a.yaml").startswith("c.yaml is larger than")


def test_the_most_values_and_stages_are_read_within_the_limits(good):
    labels = "".join(f"      {i}: label {i}\n" for i in range(2200))
    stages = "".join(f"- name: s{i}\n" for i in range(32))
    (good / "large.yaml").write_text(f"extends: good.yaml\nmodel:\n  config:\n    id2label:\n{labels}stages:\n{stages}")
    assert refusal(load_run, good / "large.yaml") is None
    assert len(load_run(good / "large.yaml")[31].model.config["id2label"]) == 2200


def test_aliases_within_the_limits_are_read(good):
    (good / "alias.yaml").write_text(
        "extends: good.yaml\nrollout_matching: {decoding: &d {top_k: 5}, eval_decoding: *d}\n"
    )
    training = load_run(good / "alias.yaml")[0].training
    assert training.decoding == training.eval_decoding


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"gradient_accumulation_steps": 0},
            "training.gradient_accumulation_steps is 0; it takes 1 micro-batch or more",
        ),
        ({"gradient_accumulation_steps": -1}, "training.gradient_accumulation_steps is -1"),
        ({"gradient_accumulation_steps": "many"}, "training.gradient_accumulation_steps is 'many'"),
        ({"learning_rate": float("inf")}, "training.learning_rate is inf; it takes a finite number"),
        ({"weight_decay": float("nan")}, "training.weight_decay is nan; it takes a finite number"),
        ({"lr_scheduler_kwargs": "{"}, "training: transformers refuses these arguments: JSONDecodeError"),
    ],
)
def test_the_same_values_are_refused_in_python(tmp_path, given, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        tiny_arguments(tmp_path, **given)
