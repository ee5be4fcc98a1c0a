"""A target builder of the user's own, fed from a JSONL file by the command: its columns are what is trained."""

import json
from types import SimpleNamespace

import pytest
import torch

from rollout_sft.config.run import load_run
from rollout_sft.inputs.segment import Segment
from rollout_sft.targets.base import Target
from rollout_sft.targets.loading import make_target_builder
from rollout_sft.train import run_stage

CONFIG = """
global_max_length: 64
model:
  tokenizer_name_or_path: examples.digits.tokenizer:build_digits_tokenizer
  config: {model_type: qwen3, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1,
           head_dim: 16, intermediate_size: 16}
data: {train: {source: TRAIN}, eval: {source: EVAL}}
training: {output_dir: OUT, use_cpu: true, report_to: none, num_train_epochs: 60, per_device_train_batch_size: 2,
           gradient_accumulation_steps: 1, learning_rate: 3e-2, save_strategy: no, lr_scheduler_type: constant}
rollout_matching:
  target_builder: tests.rollout_sft.targets.test_custom_builder:make_builder
  post_rollout_pack_scope: window
  decoding: {max_new_tokens: 2}
"""


class Answers:
    """Trains on the column `answer`, whatever the model said; scores whether it said just that."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def build_reference(self, sample):
        answer = [*self.tokenizer(sample["answer"])["input_ids"], self.tokenizer.eos_token_id]
        ids = [*sample["prompt_ids"], *answer]
        weights = [0.0] * (len(sample["prompt_ids"]) - 1) + [1.0] * len(answer) + [0.0]
        return Target(segment=Segment.from_lists(ids, [*ids[1:], ids[-1]], weights), counters={})

    def build(self, sample, rollout):
        return self.build_reference(sample)

    def score(self, sample, rollout):
        right = self.tokenizer(sample["answer"])["input_ids"] == rollout.response_ids[:1]
        return {"right": (float(right), 1.0)}


def make_builder(tokenizer, config):
    return Answers(tokenizer)


def test_the_command_trains_what_the_columns_say(tmp_path):
    rows = [{"prompt": f"<c0{i}>", "answer": f"<c1{i}>"} for i in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "config.yaml"
    text = CONFIG.replace("OUT", str(tmp_path / "out"))
    config.write_text(text.replace("TRAIN", str(path)).replace("EVAL", str(path)))
    (stage,) = load_run(config)
    torch.manual_seed(0)
    run_stage(stage)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    right = [line["eval_right"] for line in lines if "eval_right" in line]
    assert (right[0], right[-1]) == (0.0, 1.0), "the answers are in no other place than the column"


class WithoutScore:
    def __init__(self, tokenizer, config):
        pass

    def build(self, sample, rollout):
        raise NotImplementedError

    build_reference = build


def test_a_builder_without_one_of_its_methods_is_refused_before_training():
    config = SimpleNamespace(target_builder=f"{__name__}:WithoutScore")
    with pytest.raises(ValueError, match=r"gives a WithoutScore without score\. A TargetBuilder has build\("):
        make_target_builder(None, config)
