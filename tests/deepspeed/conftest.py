"""Two ranks that run every cell of the tests below in one start; each test reads what its cells gave."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, set_seed

from examples.digits.tokenizer import build_digits_tokenizer
from tests.distributed.launch import on_two_ranks
from tests.tiny_families import tiny_config

os.environ.setdefault("DS_ACCELERATOR", "cpu")
PAGE = Path(__file__).parents[2] / "docs" / "multi_gpu.md"
DEMO = PAGE.parents[1] / "configs" / "demo.yaml"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.deepspeed)


def documented(kind):
    """The YAML or JSON of the page's section on DeepSpeed."""
    section = PAGE.read_text().partition("### DeepSpeed ZeRO\n")[2].partition("\n## ")[0]
    (block,) = re.findall(rf"```{kind}\n(.*?)```", section, flags=re.S)
    return {"yaml": yaml.safe_load, "json": json.loads}[kind](block)


class Runs:
    """What two ranks gave for each cell, and the weights after it."""

    def __init__(self, folder, cells, families):
        self.folder = folder
        for family in families:
            save_model(family, folder / "weights" / family)
        (folder / "cells.json").write_text(json.dumps(cells))
        self.ranks = on_two_ranks("tests.deepspeed.worker", folder, str(folder), timeout=900)

    def __getitem__(self, name):
        """The cell's result on rank 0."""
        return self.ranks[0][name]

    def weights(self, name):
        return torch.load(self.folder / name / "weights.pt")

    def distance(self, name, other):
        """The largest difference of a weight, relative to the largest weight."""
        one, two = self.weights(name), self.weights(other)
        assert one.keys() == two.keys()
        return max(float((one[k] - two[k]).abs().max()) for k in one) / max(float(w.abs().max()) for w in two.values())


def save_model(family, folder):
    tokenizer = build_digits_tokenizer()
    set_seed(0)
    config = tiny_config(family, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
