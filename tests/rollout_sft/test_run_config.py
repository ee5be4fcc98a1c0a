"""YAML -> stages: the requirement's keys, and errors that name the key, the nearest valid one and what it takes."""

import textwrap

import pytest

from rollout_sft.run_config import load_run

BASE = """
global_max_length: 512
model: {config: {model_type: qwen3}, tokenizer_name_or_path: digits}
data: {train: {source: digits}}
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
    return "extends: base.yaml\n" + textwrap.dedent(extra)


@pytest.fixture
def load_over(load, tmp_path):
    (tmp_path / "base.yaml").write_text(textwrap.dedent(BASE).replace("OUT", str(tmp_path / "out")))
    return lambda extra: load(overridden(extra))


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
    assert not config.boundary_supervision


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
    assert config.train_decoding().temperature == 0.7
    assert config.evaluation_decoding().temperature == 0.0
    assert config.evaluation_decoding().max_new_tokens == 32


def test_template_max_length_gives_packing_length_too(load_over):
    (stage,) = load_over("""
        global_max_length: null
        template: {max_length: 300}
    """)
    assert stage.training.packing_length == 300


ERRORS = {
    "unknown section": (
        "rollout_matchin: {}",
        "unknown key rollout_matchin: the nearest valid key is rollout_matching",
    ),
    "misspelt key": (
        "rollout_matching: {post_rollout_pack_scop: window}",
        "unknown key rollout_matching.post_rollout_pack_scop: the nearest valid key is post_rollout_pack_scope, "
        r"which takes micro \| window",
    ),
    "misspelt training key": (
        "training: {learning_rat: 0.1}",
        "unknown key training.learning_rat: the nearest valid key is learning_rate, which takes a number",
    ),
    "key in the wrong section": (
        "training: {post_rollout_pack_scope: window}",
        r"training.post_rollout_pack_scope: it belongs under rollout_matching:, where it takes micro \| window",
    ),
    "unknown scope": (
        "rollout_matching: {post_rollout_pack_scope: batch}",
        "rollout_matching.post_rollout_pack_scope is 'batch'; it takes one of micro, window",
    ),
    "unknown decoding knob": (
        "rollout_matching: {decoding: {max_tokens: 3}}",
        "rollout_matching.decoding.max_tokens: the nearest valid key is max_new_tokens, which takes an integer",
    ),
    "packing_length": ("training: {packing_length: 4}", "training.packing_length is refused.*global_max_length"),
    "packing_drop_last": ("training: {packing_drop_last: false}", "training.packing_drop_last is false.*window"),
    "text for a number": ("training: {packing_buffer: many}", "training.packing_buffer is 'many'; it takes an integer"),
    "truth for a number": ("training: {packing_buffer: true}", "training.packing_buffer is True; it takes an integer"),
    "number for a truth": ("training: {packing: 3}", "training.packing is 3; it takes true or false"),
    "buffer of zero": ("training: {packing_buffer: 0}", "training.packing_buffer is 0; it takes 1 segment or more"),
    "ratio": ("training: {packing_min_fill_ratio: 1.5}", "training.packing_min_fill_ratio is 1.5; it takes a share"),
    "length of zero": ("global_max_length: 0", "global_max_length is 0; it takes"),
    "two lengths": ("template: {max_length: 3}", "disagree; both give packing_length"),
    "variant": ("custom: {trainer_variant: sft}", "custom.trainer_variant is 'sft'; it takes rollout_matching_sft"),
    "section that is a list": ("training: [1]", "training is .*; it takes a mapping"),
    "two models": ("model: {model_name_or_path: x}", "either model_name_or_path or config"),
    "model key": ("model: {attn: sdpa}", "unknown key model.attn: the nearest valid key is attn_implementation"),
    "data key": ("data: {train: {sourc: digits}}", "unknown key data.train.sourc: the nearest valid key is source"),
    "dtype": ("model: {dtype: half}", r"model.dtype is 'half'; it takes float32 \| bfloat16"),
    "label smoothing": (
        "training: {label_smoothing_factor: 0.1}",
        "training.label_smoothing_factor is 0.1, which is refused",
    ),
    "auto batch size": (
        "training: {auto_find_batch_size: true}",
        "training.auto_find_batch_size is True, which is refused",
    ),
    "NEFTune": ("training: {neftune_noise_alpha: 5.0}", "training.neftune_noise_alpha is 5.0, which is refused"),
    "reference fraction": (
        "rollout_matching: {reference_fraction: 2}",
        "reference_fraction is 2.*share between 0 and 1",
    ),
    "duplicate key": ("training: {seed: 1, seed: 2}", "line 2: the key 'seed' is given twice"),
    "stage names": ("stages: [{name: a}, {name: a}]", "stages have the names"),
    "stages that are no list": ("stages: {name: a}", "stages is .*; it takes a list"),
    "not YAML": ("training: {", "not valid YAML"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_files_are_refused_with_the_key_and_what_it_takes(load_over, name):
    text, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        load_over(text)


def test_missing_files_are_named(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_run(tmp_path / "nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
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
    assert second.training.train_decoding().max_new_tokens == 9, "mappings merge"
    assert second.training.output_dir == str(tmp_path / "out" / "two")
    assert second.training.learning_rate == 1e-3


def test_the_projects_own_configurations_load():
    from pathlib import Path

    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")):
        assert load_run(path), path
