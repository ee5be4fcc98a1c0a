"""What would fail late or end without weights is refused before a model is loaded."""

import copy

import pytest
import yaml

from rollout_sft import check
from tests.deepspeed.conftest import DEMO, documented
from tests.tiny import tiny_arguments

ZERO = documented("json")


def arguments(folder, zero, **overrides):
    config = copy.deepcopy({**ZERO, **zero})
    return tiny_arguments(folder, **{"deepspeed": config, **overrides})


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("gathers", [True, False])
def test_stages_that_keep_whole_weights_need_no_key_and_stage_0_is_refused(tmp_path, stage, gathers):
    zero = {"zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": gathers}}
    if stage:
        arguments(tmp_path, zero)
        return
    with pytest.raises(ValueError, match=r"stage 0, the default, .* reports no norm .* Set stage 1, 2 or 3"):
        arguments(tmp_path, zero)


def test_no_stage_at_all_is_stage_0(tmp_path):
    with pytest.raises(ValueError, match=r"zero_optimization\.stage 0"):
        arguments(tmp_path, {"zero_optimization": {}})


def test_stage_3_without_whole_weights_names_the_missing_key(tmp_path):
    message = r'stage3_gather_16bit_weights_on_model_save is not true.*without model\.safetensors.*"stage": 3, "stage3_'
    for given in ({"stage": 3}, {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}):
        with pytest.raises(ValueError, match=message):
            arguments(tmp_path, {"zero_optimization": given})


def test_values_that_differ_from_training_are_named_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=7, but training\.gradient_accumulation_steps=3"):
        arguments(tmp_path, {"gradient_accumulation_steps": 7, "train_batch_size": "auto"})


def test_skipping_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"on_non_finite is skip, but DeepSpeed steps its optimizer inside"):
        arguments(tmp_path, {}, on_non_finite="skip")


def test_the_check_looks_at_a_configuration_of_stage_3_on_one_process(tmp_path, capsys):
    training = {
        **documented("yaml")["training"],
        "deepspeed": ZERO,
        "use_cpu": True,
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump({"extends": str(DEMO), "training": training}))
    check.main(["--config", str(tmp_path / "demo.yaml")])
    out = " ".join(capsys.readouterr().out.split())
    assert "No problem found" in out
    assert "parameters, all trained" in out
