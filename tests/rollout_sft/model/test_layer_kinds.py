"""The layers that mix along the row are found, and so are the kernels behind which their state is kept apart."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.forward import prepare_forward
from rollout_sft.model.layer_kinds import CONVOLUTION, DECODING, SCANS, kept_apart, recurrent_layers
from rollout_sft.model.recurrent import RecurrentLayers
from rollout_sft.step.collate import forward_inputs
from tests.hybrids import HYBRIDS, hybrid
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
    assert found - DECODING == {*CONVOLUTION, *SCANS}  # an older release may have fewer for decoding


@pytest.mark.parametrize("family", HYBRIDS)
def test_every_kernel_that_replaces_the_loop_gets_the_borders(monkeypatch, family):
    """On a GPU with all packages: the functions that compute in PyTorch stand in, and note what they are given."""
    model, borders = hybrid(family, torch.float32), {**CONVOLUTION, **SCANS}
    given = []

    def kernel(name, function):
        plain = inspect.unwrap(function)
        known = set(inspect.signature(plain).parameters)

        def noting(*args, **kwargs):
            if not args and set(kwargs) <= {"seq_idx", "cu_seqlens"}:
                raise TypeError("its other arguments are missing")
            row = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            given.append((name, kwargs.get(borders[name]) is not None, row.shape[0] == 1 and 9 in row.shape))
            return plain(*args, **{key: value for key, value in kwargs.items() if key in known})

        return noting

    for module in {inspect.getmodule(type(layer)) for layer in recurrent_layers(model).values()}:
        for name in set(borders) & set(vars(module)):
            monkeypatch.setattr(module, name, kernel(name, vars(module)[name]))
    ids = torch.arange(3, 12)
    pack = pack_of([Segment.from_lists(part, part, [0.0] * len(part)) for part in (ids[:4].tolist(), ids[4:].tolist())])
    layers = RecurrentLayers(model, device=torch.device("cuda"))
    given.clear()
    with layers.active():
        model(**prepare_forward(model, forward_inputs(pack)))
    assert [name for name, told, whole in given if whole and not told] == []
    if layers.by_kernel:
        assert given


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
