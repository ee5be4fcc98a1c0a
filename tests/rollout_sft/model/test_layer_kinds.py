"""The layers that mix along the row are found, and so are the kernels behind which their state is kept apart."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from rollout_sft.model.layer_kinds import CONVOLUTION, DECODING, SCANS, kept_apart, recurrent_layers
from tests.hybrids import hybrid
from tests.tiny_families import tiny_config


@pytest.mark.parametrize("family", ["jamba", "zamba"])
def test_a_state_without_borders_is_looped_although_the_convolution_knows_them(monkeypatch, family):
    layer = next(iter(recurrent_layers(hybrid(family)).values()))
    module = inspect.getmodule(type(layer))
    for name in ("causal_conv1d_fn", "mamba_selective_scan", "mamba_inner_fn"):
        monkeypatch.setattr(module, name, lambda x, weight, seq_idx=None: x, raising=False)
    assert not kept_apart(layer)


def test_every_function_behind_which_a_kernel_may_stand_is_known():
    decorated = re.compile(r"@use_kernel_func_from_hub_with_fallback\([^)]*\)\ndef (\w+)")
    root = Path(inspect.getfile(transformers)).parent / "models"
    found = {name for path in root.glob("*/modeling_*.py") for name in decorated.findall(path.read_text())}
    assert found == {*CONVOLUTION, *SCANS, *DECODING}


def test_every_family_with_a_state_has_its_recurrent_layers_found():
    """A family whose layers this project does not know would leak, or be refused by the probe."""
    root = Path(inspect.getfile(transformers)).parent / "models"
    stateful = {p.parent.name for p in root.glob("*/modeling_*.py") if "_is_stateful = True" in p.read_text()}
    causal = set(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    families = sorted(f for name in stateful for f in (name, f"{name}_text") if f in causal)
    assert len(families) > 15
    without = []
    for family in families:
        config = tiny_config(family)
        if config is None:  # its text model is a family of its own
            continue
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if not recurrent_layers(model):
            without.append(family)
    # Compressed attention whose positions restart; xLSTM takes no position_ids and is refused.
    assert without == ["deepseek_v4", "xlstm"]
