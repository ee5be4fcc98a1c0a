"""The probe of lengths stops every model whose segments depend on the row, by name, and passes all others."""

import pytest
import torch

from rollout_sft.checks.leak_probe import LeakError
from rollout_sft.checks.length_probe import SHORTEST, check_lengths, segment_lengths, whole_numbers
from rollout_sft.model import recurrent
from rollout_sft.model.attention import choose_attention
from tests.image_runs import adapter_of
from tests.row_lengths import CPU, READ_BY_ROW, as_trained, build, small_config
from tests.tiny_families import available
from tests.tiny_images import image_model

PACKING_LENGTH = 160
FAULTS = available({**READ_BY_ROW, "inkling, query scale": ("inkling_text", None)})
FAMILIES = pytest.mark.parametrize(("family", "kind"), FAULTS.values(), ids=FAULTS)


def model_of(family, kind=None, dtype=torch.float32, **overrides):
    return build(small_config(family, kind, **overrides)[0], dtype)


@FAMILIES
def test_a_model_that_reads_the_row_is_stopped_without_its_cure(family, kind):
    model = model_of(family, kind)
    choose_attention(model, "auto", device=CPU)
    with pytest.raises(LeakError, match=rf"{type(model).__name__} with attention .*(neighbours change|does not give)"):
        check_lengths(model, PACKING_LENGTH)


@FAMILIES
def test_with_its_cure_it_passes(family, kind):
    model = model_of(family, kind)
    with as_trained(model).active():
        report = check_lengths(model, PACKING_LENGTH)
    assert report.moved <= 1e-6
    assert report.alone <= 2e-6


@pytest.mark.parametrize(("family", "kind"), [case for case in FAULTS.values() if case[1]])
def test_frequencies_are_seen_in_half_precision_too(family, kind):
    """The rounding of bfloat16 may hide the difference from a plain forward, but not the movement."""
    model = model_of(family, kind, torch.bfloat16)
    choose_attention(model, "auto", device=CPU)
    with pytest.raises(LeakError, match="neighbours change a segment"):
        check_lengths(model, PACKING_LENGTH)
    with as_trained(model).active():
        assert check_lengths(model, PACKING_LENGTH).moved == 0


@pytest.mark.parametrize("family", ["mistral", "gpt2", "qwen3_moe", "glm_moe_dsa", "bamba", "qwen3_5_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_that_do_not_read_the_row_pass(family, dtype):
    model = model_of(family, dtype=dtype)
    with as_trained(model).active():
        report = check_lengths(model, PACKING_LENGTH)
    assert report.alone <= (2e-6 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_image_models_are_probed_with_images(family):
    model = image_model(family, torch.float32)
    with as_trained(model).active():
        report = check_lengths(model, 400, adapter=adapter_of(family, model))
    assert report.alone <= 2e-6
    assert report.moved <= 1e-6


@pytest.mark.parametrize("packing_length", [16, 17, 100, 900, 4096, 16384])
def test_the_pack_has_segments_on_both_sides_of_every_length(packing_length):
    config = {
        "a": 32,
        "nested": {"list": [64, 700.0], "deep": {"window": 4095}},
        "flag": True,
        "share": 0.5,
        "b": 16383,
    }
    lens = segment_lengths(config, packing_length)
    assert sum(lens) <= packing_length
    assert packing_length - sum(lens) < SHORTEST
    known = [n for n in whole_numbers(config) if SHORTEST < n < packing_length - 2 * SHORTEST]
    assert all(min(lens) <= n < max(lens) for n in known)
    assert max(lens) >= packing_length // 2
    assert lens.index(max(lens)) not in (0, len(lens) - 1), "something before it and behind it"
    assert segment_lengths(config, packing_length) == lens


def test_a_model_with_a_table_of_positions_gets_no_longer_segment():
    lens = segment_lengths({}, 900, longest=100)
    assert max(lens) == 100
    assert sum(lens) > 900 - SHORTEST
    model = model_of("gpt2", max_position_embeddings=64)
    assert max(check_lengths(model, 400).lens) == 64


def test_a_pack_without_room_for_two_segments_is_not_probed():
    assert check_lengths(model_of("llama"), 6) is None


def test_training_does_not_start_where_lengths_change_a_segment(make_trainer, tokenizer, monkeypatch):
    """The fault that is planted: the cure of the rotary embeddings finds none."""
    monkeypatch.setattr(recurrent, "rotary_by_row", lambda model: {})
    model = model_of("llama", "dynamic", vocab_size=len(tokenizer))
    trainer = make_trainer(model=model, post_rollout_pack_scope="window")
    with pytest.raises(LeakError, match="neighbours change a segment"):
        trainer.train()
    assert not trainer.recorder.segments, "refused before the first rollout"


def test_the_most_uneven_pack_of_the_first_window_is_compared(make_trainer, tokenizer, monkeypatch, caplog):
    """A length that stands in no configuration is seen where training meets it."""
    model = model_of("llama", vocab_size=len(tokenizer))
    trainer = make_trainer(model=model, post_rollout_pack_scope="window", max_steps=2)
    with caplog.at_level("INFO", logger="rollout_sft.checks.length_probe"):
        trainer.train()
    assert caplog.text.count("the most uneven pack of the window is") == 1
    assert caplog.text.count("packed segments of") == 1

    trainer = make_trainer(model=model, post_rollout_pack_scope="window")
    own = type(model.model.embed_tokens).forward
    probed = []

    def scaled(self, ids):
        """As if the model counted places in the row, behind the lengths of the first probes."""
        return own(self, ids) * (1 + 0.1 * bool(probed) * (torch.arange(ids.shape[1]) > 40)[None, :, None])

    monkeypatch.setattr(type(model.model.embed_tokens), "forward", scaled)
    monkeypatch.setattr(trainer, "_probe", lambda own=trainer._probe: (own(), probed.append(True))[0])
    with pytest.raises(LeakError, match=r"the pack of segments of .* in the first window does not give every segment"):
        trainer.train()
    assert trainer.state.global_step == 0
