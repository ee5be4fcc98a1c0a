"""No configuration, however damaged, raises anything but the documented errors or goes over the limits."""

import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rollout_sft.config.arguments import ROLLOUT_MATCHING, TRAINING
from rollout_sft.config.decoding import Decoding
from rollout_sft.config.run import load_run
from rollout_sft.config.sections import DataSpec, ModelSpec
from rollout_sft.config.vllm import VLLMConfig
from tests.fuzz.cases import cases
from tests.fuzz.values import MUTATIONS, SCALARS, TEXTS, VALUES, mutated
from tests.limits import refusal

pytestmark = pytest.mark.fuzz

GOOD = """
global_max_length: 512   # a comment
model:
  tokenizer_name_or_path: a:b
  config: {model_type: qwen3, hidden_size: 128, rope_theta: 10000.0}
data:
  train: {source: c:d, size: 9, arguments: {ramp: 0.5}}
  eval: &e {source: "c:d", split: eval}
training:
  output_dir: out
  use_cpu: true
  learning_rate: 2e-3
  lr_scheduler_kwargs: {min_lr_rate: 0.3}
  save_strategy: no
  report_to: none
rollout_matching:
  decoding: {max_new_tokens: 192, temperature: .7}
  rollout_backend: vllm
  vllm: {mode: server, base_url: ['http://a:1']}
stages:
  - name: one
    training: {gradient_accumulation_steps: 8}
  - name: two
    data: {train: *e}
"""
NEEDS_A_PACKAGE = {"deepspeed"}
"""Raises ImportError where the package is missing."""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(raw):
        (tmp_path / "case.yaml").write_bytes(raw)
        environment = dict(os.environ)
        try:
            return refusal(load_run, tmp_path / "case.yaml")
        finally:  # some keys of transformers set variables
            os.environ.clear()
            os.environ.update(environment)

    return read


def test_the_configuration_that_is_damaged_below_is_good(read):
    assert read(GOOD.encode()) is None


@cases(300)
@given(raw=st.binary(max_size=300))
def test_any_bytes(read, raw):
    read(raw)


PIECES = st.sampled_from([*"[]{}:,-?&*!|>%@`\"'#\n\t a1", ": ", "- ", "\n  ", "&a ", "*a", "---\n", "...\n", "<<"])


@cases(300)
@given(pieces=st.lists(PIECES | TEXTS, max_size=60))
def test_any_text_of_yaml(read, pieces):
    read("".join(pieces).encode("utf-8", "surrogatepass"))


@cases(700)
@given(mutations=MUTATIONS)
def test_a_good_file_that_was_damaged(read, mutations):
    read(mutated(GOOD, mutations).encode("utf-8", "surrogatepass"))


def under(*path, keys):
    return st.tuples(st.just(path), st.sampled_from([*keys, "unknown"]), SCALARS | VALUES)


CHANGES = st.one_of(
    under("training", keys=[key for key in TRAINING.hints if key not in NEEDS_A_PACKAGE]),
    under("training", keys=[key for key in TRAINING.hints if key not in NEEDS_A_PACKAGE]),
    under("rollout_matching", keys=ROLLOUT_MATCHING.hints),
    under("rollout_matching", "decoding", keys=Decoding.__dataclass_fields__),
    under("rollout_matching", "vllm", keys=VLLMConfig.__dataclass_fields__),
    under("model", keys=ModelSpec.__dataclass_fields__),
    under("data", "train", keys=DataSpec.__dataclass_fields__),
    under(keys=["extends", "stages", "global_max_length", "template", "custom", "data", "training"]),
)


@cases(1200)
@given(changes=st.lists(CHANGES, min_size=1, max_size=3))
def test_any_values_under_the_known_keys(read, changes):
    document = yaml.safe_load(GOOD.replace("save_strategy: no", "save_strategy: 'no'"))
    for path, key, value in changes:
        section = document
        for part in path:
            inner = section.get(part)
            section[part] = section = inner if isinstance(inner, dict) else {}
        section[key] = value
    read(yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass"))
