"""Prompts with which no answer can be right are named, and arguments reach the chat template."""

import json
import logging

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import processors

from rollout_sft.config.run import load_run
from rollout_sft.config.sections import DataSpec
from rollout_sft.data.loading import load_dataset
from rollout_sft.data.records import load_records
from tests.rollout_sft.targets.tokenizers import MAKERS

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<model>{% if thinks is not defined or thinks %}<think>\n{% endif %}{% endif %}"
)
CLOSED = {"thinks": False}
MESSAGES = {"messages": [{"role": "user", "content": "where?"}], "objects": []}


def tokenizer(single="<bos> $A"):
    made = MAKERS["words"]()
    made.add_special_tokens({"bos_token": "<bos>"})
    special = [(name, made.convert_tokens_to_ids(name)) for name in ("<bos>", "<eos>")]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    made.chat_template = TEMPLATE
    return made


def load(folder, row, made=None, **further):
    path = folder / "data.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return load_records(str(path), made or tokenizer(), **further)


@pytest.mark.parametrize(
    ("prompt", "single", "message"),
    [
        ("<bos>where?", "<bos> $A", "prompt begins with '<bos>', and the tokenizer adds another one"),
        ("where?", "<bos> $A <eos>", "the tokenizer adds its end token '<eos>' behind every prompt.*add_eos_token"),
        ("where?<eos>", "<bos> $A", "prompt ends with the end token '<eos>'"),
        ("where?<eos>\n", "$A", "prompt ends with the end token '<eos>'"),
        ("where?<think>\n", "$A", r"the prompt ends with an open <think>: .*enable_thinking"),
    ],
)
def test_a_prompt_with_wrong_edges_is_refused_by_line(tmp_path, prompt, single, message):
    with pytest.raises(ValueError, match=rf"data\.jsonl:1: {message}"):
        load(tmp_path, {"prompt": prompt, "objects": []}, tokenizer(single))


@pytest.mark.parametrize(
    ("prompt", "single"),
    [
        ("<bos>where?", "$A"),
        ("where?", "<bos> $A"),
        ("a<eos>b", "$A"),
        ("<think>no</think>", "$A"),
        ("a <think> b", "$A"),
    ],
)
def test_other_prompts_are_taken_as_they_are(tmp_path, prompt, single):
    made = tokenizer(single)
    assert load(tmp_path, {"prompt": prompt, "objects": []}, made)[0]["prompt_ids"] == made(prompt)["input_ids"]


def test_a_template_that_opens_thoughts_is_refused_and_its_arguments_close_them(tmp_path):
    with pytest.raises(ValueError, match=r"data\.jsonl:1: the prompt ends with an open <think>.*chat_template_kwargs"):
        load(tmp_path, MESSAGES)
    made = tokenizer()
    ids = load(tmp_path, MESSAGES, made, chat_template_kwargs=CLOSED)[0]["prompt_ids"]
    assert made.decode(ids) == "<bos><user>where?<model>"


def test_a_target_builder_of_one_s_own_may_write_thoughts(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(tmp_path, MESSAGES, require_objects=False)
    assert "data.jsonl:1: the prompt ends with an open <think>" in caplog.text


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    ("column", "numbers", "read"),
    [
        (pa.float32(), [2.1, 0.1, 100.3, 33000.7], [2.1, 0.1, 100.3, 33000.7]),
        (pa.float64(), [float(np.float32(2.1)), 0.5009765625, 3.5, 4.0], [2.0999999046325684, 0.5009765625, 3.5, 4.0]),
    ],
)
def test_float32_columns_are_read_by_their_shortest_digits(tmp_path, kind, column, numbers, read):
    box = [0.5, numbers[1], numbers[0] + 0.0, numbers[3]]
    expected = [0.5, read[1], read[0], read[3]]
    objects = pa.list_(pa.struct({"desc": pa.string(), "bbox_2d": pa.list_(column)}))
    table = pa.table(
        {
            "prompt": ["where?"],
            "weight": pa.array([2.1], column),
            "objects": pa.array([[{"desc": "cat", "bbox_2d": box}]], objects),
        }
    )
    parquet.write_table(table, tmp_path / "train.parquet")
    source = tmp_path / "train.parquet" if kind == "file" else tmp_path
    (record,) = load_records(str(source), tokenizer()).records
    assert record["objects"] == [{"desc": "cat", "bbox_2d": expected}]
    assert record["weight"] == pa.array([2.1], column)[0].as_py()


def reading(tokenizer, split, size, seed, chat_template_kwargs):
    return [{"id": "a", "prompt_ids": [5], "seen": chat_template_kwargs}]


def not_reading(tokenizer, split, size, seed):
    return [{"id": "a", "prompt_ids": [5]}]


def test_a_function_gets_the_arguments_of_the_template_or_is_refused():
    given = {"seed": 0, "chat_template_kwargs": CLOSED}
    source = f"{__name__}:reading"
    assert load_dataset(DataSpec(source=source), tokenizer(), **given)[0]["seen"] == CLOSED
    with pytest.raises(ValueError, match=r"data\.chat_template_kwargs is .*takes no chat_template_kwargs; add"):
        load_dataset(DataSpec(source=f"{__name__}:not_reading"), tokenizer(), **given)
    assert load_dataset(DataSpec(source=f"{__name__}:not_reading"), tokenizer(), seed=0)


def test_a_file_says_what_the_template_gets(tmp_path):
    file = tmp_path / "x.yaml"
    text = (
        "global_max_length: 64\nmodel: {model_name_or_path: x}\ndata:\n  train: {source: a.jsonl}\n"
        "  chat_template_kwargs: {%s}\ntraining: {use_cpu: true, report_to: none}\n"
    )
    file.write_text(text % "enable_thinking: false")
    (stage,) = load_run(file)
    assert stage.training.chat_template_kwargs == {"enable_thinking": False}
    file.write_text(text % "tokenize: true")
    with pytest.raises(ValueError, match=r"data\.chat_template_kwargs holds tokenize, which the trainer sets"):
        load_run(file)
