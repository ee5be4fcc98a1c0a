"""Loads YAML that is written in a test, alone or over a base that has every required section."""

import textwrap

import pytest
import yaml

from rollout_sft.config.run import load_run

BASE = """
global_max_length: 512
model: {config: {model_type: qwen3}, tokenizer_name_or_path: examples.digits.tokenizer:build_digits_tokenizer}
data: {train: {source: examples.digits.data:load_digits}}
training: {output_dir: OUT, use_cpu: true, report_to: none}
"""


@pytest.fixture
def load(tmp_path):
    def load(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text).replace("OUT", str(tmp_path / "out")))
        return load_run(path)

    return load


def overridden(extra):
    """YAML that overrides the base; a mapping in braces of whole sections is taken apart into them."""
    text = textwrap.dedent(extra)
    if text.startswith("{"):
        text = yaml.safe_dump(yaml.safe_load(text))
    return "extends: base.yaml\n" + text


@pytest.fixture
def load_over(load, tmp_path):
    (tmp_path / "base.yaml").write_text(textwrap.dedent(BASE).replace("OUT", str(tmp_path / "out")))
    return lambda extra: load(overridden(extra))
