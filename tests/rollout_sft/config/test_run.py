"""YAML -> stages: the requirement's keys, their types and spellings, files that extend another, several stages."""

from importlib.util import find_spec

import pytest

from rollout_sft.config.run import load_run
from tests.rollout_sft.config.conftest import BASE


def test_the_requirements_keys_keep_their_names_and_defaults(load):
    (stage,) = load(
        BASE
        + """
custom: {trainer_variant: rollout_matching_sft}
"""
    )
    config = stage.training
    assert config.packing_length == 512
    assert config.post_rollout_pack_scope == "micro", "the default is today's behaviour"
    assert (config.packing, config.packing_drop_last, config.reference_fraction) == (True, True, 0.0)
    assert config.prefix_supervision == "coordinates", "the requirement's supervision, to the letter"


def test_values_arrive_with_their_types(load_over):
    (stage,) = load_over("""
        training:
          packing: true
          packing_buffer: 64
          packing_min_fill_ratio: 0.7
          packing_drop_last: true
          learning_rate: 3e-4
          gradient_accumulation_steps: 8
          lr_scheduler_kwargs: {min_lr_rate: 5e-2}
          lr_scheduler_type: cosine_with_min_lr
        rollout_matching:
          post_rollout_pack_scope: window
          decoding: {max_new_tokens: 32, temperature: 0.7}
    """)
    config = stage.training
    assert (config.packing_buffer, config.packing_min_fill_ratio) == (64, 0.7)
    assert (config.learning_rate, config.gradient_accumulation_steps) == (3e-4, 8)
    assert config.lr_scheduler_kwargs == {"min_lr_rate": 0.05}
    assert config.decoding.temperature == 0.7
    assert config.eval_decoding.temperature == 0.0
    assert config.eval_decoding.max_new_tokens == 32


def test_template_max_length_gives_packing_length_too(load_over):
    (stage,) = load_over("""
        global_max_length: null
        template: {max_length: 300}
    """)
    assert stage.training.packing_length == 300


def test_off_and_no_are_texts_where_texts_are_taken(load_over):
    (stage,) = load_over("""
        training: {save_strategy: no, logging_strategy: no, include_num_input_tokens_seen: no}
        rollout_matching: {validate_schedule: off}
    """)
    config = stage.training
    assert (config.save_strategy, config.logging_strategy, config.validate_schedule) == ("no", "no", "off")
    assert config.include_num_input_tokens_seen == "no"


@pytest.mark.parametrize("spelling", ["true", "True", "TRUE", "yes", "on", "ON"])
def test_booleans_keep_all_their_spellings(load_over, spelling):
    (stage,) = load_over(f"""
        training: {{use_cpu: true, save_only_model: {spelling}, resume_from_checkpoint: {spelling}}}
        rollout_matching: {{supervise_desc: {spelling}, rollout_backend: vllm, vllm: {{sleep: {spelling}}}}}
    """)
    config = stage.training
    assert (config.save_only_model, config.supervise_desc, config.vllm.sleep) == (True, True, True)
    assert config.resume_from_checkpoint is True


@pytest.mark.parametrize("spelling", ["false", "False", "FALSE", "no", "off", "OFF"])
def test_falsehoods_keep_all_their_spellings(load_over, spelling):
    (stage,) = load_over(f"""
        training: {{packing: {spelling}, fsdp: {spelling}, resume_from_checkpoint: {spelling}}}
        rollout_matching: {{check_isolation: {spelling}, rollout_backend: vllm, vllm: {{sleep: {spelling}}}}}
    """)
    config = stage.training
    assert (config.packing, config.check_isolation, config.vllm.sleep) == (False, False, False)
    assert config.resume_from_checkpoint is False
    assert not config.fsdp
    assert config.fsdp_plugin_args is None


def test_a_metric_of_evaluation_chooses_the_best_model(load_over):
    (stage,) = load_over("""
        training:
          load_best_model_at_end: true
          metric_for_best_model: eval_rollout/f1
          save_strategy: epoch
          eval_strategy: epoch
          accelerator_config: {dispatch_batches: false, even_batches: true}
        data: {eval: {source: examples.digits.data:load_digits, split: eval}}
    """)
    assert stage.training.greater_is_better is True
    assert stage.training.accelerator_config.dispatch_batches is False


def test_missing_files_are_named(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_run(tmp_path / "nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml, which .*\.yaml extends; the path is relative"):
        load("extends: gone.yaml")


def test_a_circle_of_extends_is_refused(load, tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ValueError, match="extends itself"):
        load_run(tmp_path / "a.yaml")


def test_stages_override_and_get_folders_of_their_own(load_over, tmp_path):
    first, second = load_over("""
        rollout_matching: {decoding: {max_new_tokens: 9}}
        stages:
          - name: one
            rollout_matching: {reference_fraction: 1.0}
          - name: two
            training: {learning_rate: 1e-3}
            rollout_matching: {decoding: {temperature: 1.0}}
    """)
    assert (first.name, first.training.reference_fraction, second.training.reference_fraction) == ("one", 1.0, 0.0)
    assert second.training.decoding.max_new_tokens == 9, "mappings merge"
    assert second.training.output_dir == str(tmp_path / "out" / "two")
    assert second.training.learning_rate == 1e-3


def test_deepspeed_without_its_package_says_what_to_install(load_over):
    if find_spec("deepspeed"):
        pytest.skip("DeepSpeed is installed")
    with pytest.raises(ImportError, match=r"training\.deepspeed is given, but deepspeed is not installed: pip install"):
        load_over("training: {deepspeed: {zero_optimization: {stage: 2}}}")
