"""Each silent mistake with images is caught by a named error before anything is trained."""

import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from rollout_sft.checks.equivalence import ScheduleMismatchError
from rollout_sft.checks.leak_probe import LeakError, check_isolation
from rollout_sft.checks.probe_inputs import probe_segments
from rollout_sft.inputs.qwen_vl import QwenVLInputs
from rollout_sft.model.attention import choose_attention
from rollout_sft.model.recurrent import RecurrentLayers
from tests.image_runs import AnswerBuilder, adapter_of, image_trainer, make_samples
from tests.tiny_images import IMAGE, PLAIN_VISION, image_config, image_model

CPU = torch.device("cpu")
ATTENTIONS = ["sdpa", "rollout_varlen"]


def probed(family, attention, dtype=torch.float32):
    model = image_model(family, dtype)
    if attention == "rollout_varlen":
        assert choose_attention(model, "varlen", device=CPU) == attention
    return model


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        *itertools.product(["qwen3_vl", "internvl"], ATTENTIONS),
        ("qwen3_5", "sdpa"),
        *(
            pytest.param(*case, marks=pytest.mark.families)
            for case in itertools.product(["qwen2_vl", "qwen2_5_vl", *PLAIN_VISION[1:]], ATTENTIONS)
        ),
    ],
)
def test_right_packs_with_images_pass_the_probe(family, attention):
    model = probed(family, attention)
    with RecurrentLayers(model, device=CPU).active():
        report = check_isolation(model, adapter=adapter_of(family, model))
    assert report.leak <= 2e-6
    assert report.alone < 2e-6
    assert min(report.response, report.pixels) > 1e-2


def test_the_probed_segments_have_their_images_at_different_places():
    """A model that looks images up at their place in another segment would look right where all places are the same."""
    adapter = adapter_of("qwen3_vl", image_model("qwen3_vl", torch.float32))
    x, y, other_pixels = (s.input_ids == IMAGE for s in probe_segments(64, 16, adapter))
    assert len(x) == len(y)
    assert not torch.equal(x, y)
    assert torch.equal(x, other_pixels)


def text_row_alone(self, packed):
    return {"position_ids": packed["position_ids"][0]}


def three_rows(self, packed):
    return {"position_ids": packed["position_ids"][1:]}


def counted_on_over_segments(self, packed):
    rows = packed["position_ids"]
    return {"position_ids": torch.arange(rows.shape[-1]).expand_as(rows).clone()}


def transposed_image_positions(self, packed):
    return {"position_ids": packed["position_ids"][[0, 1, 3, 2]]}


@pytest.mark.parametrize(
    ("mistake", "attention"),
    [
        *itertools.product([text_row_alone, transposed_image_positions, counted_on_over_segments], ATTENTIONS),
        (three_rows, "sdpa"),  # varlen attention knows the segments by cu_seq_lens, so it needs no text row
    ],
)
def test_wrong_positions_are_caught(mistake, attention, monkeypatch):
    model = probed("qwen3_vl", attention)
    right = QwenVLInputs.packed
    monkeypatch.setattr(QwenVLInputs, "packed", lambda self, pack: mistake(self, right(self, pack)))
    with pytest.raises(LeakError):
        check_isolation(model, adapter=adapter_of("qwen3_vl", model))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "order",
    [lambda images: images[::-1], lambda images: images[2:] + images[:2], lambda images: images[1:] + images[:1]],
    ids=["reversed", "of the next segment", "of the next place"],
)
def test_images_in_the_wrong_order_are_caught(order, attention, monkeypatch):
    model = probed("qwen3_vl", attention)
    right = QwenVLInputs.media

    def media(self, images):
        return right(self, order(images) if len(images) > 3 else images)

    monkeypatch.setattr(QwenVLInputs, "media", media)
    with pytest.raises(LeakError):
        check_isolation(model, adapter=adapter_of("qwen3_vl", model))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("where", ["packed", "everywhere"])
def test_missing_images_are_caught(where, attention, monkeypatch):
    model = probed("qwen3_vl", attention)
    right = QwenVLInputs.media
    calls = []

    def media(self, images):
        calls.append(1)
        return {} if where == "everywhere" or len(calls) < 3 else right(self, images)

    monkeypatch.setattr(QwenVLInputs, "media", media)
    with pytest.raises(LeakError):
        check_isolation(model, adapter=adapter_of("qwen3_vl", model))


@pytest.mark.parametrize("change", [{"use_cache": True}, {"attention_mask": 1}], ids=["use_cache", "all-ones mask"])
def test_arguments_that_leak_are_caught_with_images_too(change):
    model = probed("qwen3_vl", "sdpa")

    def hook(module, args, kwargs):
        if "cu_seq_lens_q" in kwargs:
            kwargs = {**kwargs, **change}
            if "attention_mask" in change:
                kwargs["attention_mask"] = torch.ones_like(kwargs["input_ids"])
        return args, kwargs

    model.register_forward_pre_hook(hook, with_kwargs=True)
    with pytest.raises(LeakError, match="see each other"):
        check_isolation(model, adapter=adapter_of("qwen3_vl", model))


@pytest.mark.parametrize("scope", ["micro", "window"])
def test_a_run_with_wrong_positions_stops_before_its_first_segment(tmp_path, scope, monkeypatch):
    model = image_model("qwen3_vl", torch.float32)
    right = QwenVLInputs.packed
    monkeypatch.setattr(QwenVLInputs, "packed", lambda self, pack: text_row_alone(self, right(self, pack)))
    trainer = image_trainer("qwen3_vl", model, tmp_path, post_rollout_pack_scope=scope)
    with pytest.raises(LeakError, match="that the model gives it alone"):
        trainer.train()
    assert not trainer.builder.segments


def test_an_image_model_probed_with_text_alone_says_so(caplog):
    model = image_model("qwen3_vl", torch.float32)
    with caplog.at_level("WARNING", "rollout_sft"):
        report = check_isolation(model)
    assert report.pixels is None
    assert "probed with text alone" in caplog.text


def test_a_tower_that_sees_nothing_is_named():
    model = image_model("qwen3_vl", torch.float32)
    merger = model.model.visual.merger.linear_fc2
    for layer in (merger, *(m.linear_fc2 for m in model.model.visual.deepstack_merger_list)):
        torch.nn.init.zeros_(layer.weight)
    with pytest.raises(LeakError, match="the probe sees no images"):
        check_isolation(model, adapter=adapter_of("qwen3_vl", model))


def test_the_text_half_of_an_image_model_is_refused_with_its_image_processor(tmp_path):
    """AutoModelForCausalLM silently builds the text half of Qwen3.5."""
    half = AutoModelForCausalLM.from_config(image_config("qwen3_5"))
    with pytest.raises(ValueError, match=r"qwen3_5_text reads text alone.*AutoModelForImageTextToText"):
        image_trainer("qwen3_5", half, tmp_path, samples=make_samples(adapter_of("qwen3_5", image_model("qwen3_5"))))


class Careless(AnswerBuilder):
    """Changes the tokens of a segment; two changes cancel in the sum over a pack."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def build_reference(self, sample):
        changed = self.change(list(sample["prompt_ids"]), sample)
        return super().build_reference({**sample, "prompt_ids": changed})


def one_token_more_and_one_less(ids, sample):
    if sample["id"] == "s0":
        ids.insert(ids.index(IMAGE), IMAGE)
    if sample["id"] == "s7":
        ids.remove(IMAGE)
    return ids


def an_image_token_in_the_answer(ids, sample):
    return [*ids, IMAGE] if sample["id"] == "s1" else ids


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (one_token_more_and_one_less, "'s0'.*7 image tokens.*1 images, which need 6"),
        (an_image_token_in_the_answer, "'s1'"),
    ],
)
@pytest.mark.parametrize("packing", [True, False])
def test_wrong_counts_of_image_tokens_name_their_segment(tmp_path, change, named, packing):
    trainer = image_trainer("qwen3_vl", image_model("qwen3_vl", torch.float32), tmp_path, packing=packing)
    trainer.window_builder._target_builder = Careless(change)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(ValueError, match=named):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("scope", ["micro", "window"])
def test_a_forward_without_an_image_is_stopped_before_it_runs(tmp_path, scope, monkeypatch):
    monkeypatch.setattr(QwenVLInputs, "dummy", lambda self: None)
    model = image_model("qwen3_vl", torch.float32)
    samples = make_samples(adapter_of("qwen3_vl", model), [[]] * 8 + [[(8, 8)]])
    settings = {"post_rollout_pack_scope": scope, "check_isolation": False}
    trainer = image_trainer("qwen3_vl", model, tmp_path, samples=samples, **settings)
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    with pytest.raises(AssertionError, match="holds no image"):
        trainer.train()
    assert not forwards


def pack_of_others(batches):
    """Swaps the segments of two packs, as a bug in collation would."""
    batches[0], batches[1] = (
        replace(batches[0], segments=batches[1].segments),
        replace(batches[1], segments=batches[0].segments),
    )


def transposed_rows(batches):
    rows = batches[0].forward["position_ids"]
    batches[0] = replace(batches[0], forward={**batches[0].forward, "position_ids": rows[[0, 1, 3, 2]]})


@pytest.mark.parametrize(
    ("change", "named"),
    [(pack_of_others, "its forward holds segments of samples"), (transposed_rows, "field position_ids of height")],
)
def test_equivalence_compares_media_and_every_row_of_positions(tmp_path, change, named):
    trainer = image_trainer(
        "qwen3_vl",
        image_model("qwen3_vl"),
        tmp_path,
        post_rollout_pack_scope="window",
        validate_schedule="first_window",
    )
    build = trainer.window_builder.build

    def changed(*args):
        window = build(*args)
        change(window.batches)
        return window

    trainer.window_builder.build = changed
    with pytest.raises(ScheduleMismatchError, match=named):
        trainer.train()


def test_equivalence_finds_a_right_window_right(tmp_path):
    trainer = image_trainer(
        "qwen3_vl",
        image_model("qwen3_vl"),
        tmp_path,
        post_rollout_pack_scope="window",
        validate_schedule="first_window",
    )
    trainer.train()
    assert trainer.state.log_history[0]["equivalence/gradient"] < 1e-12


def test_choose_attention_refuses_image_models_without_an_adapter():
    model = image_model("qwen3_vl", torch.float32)
    model.config.model_type = "gemma3"
    with contextlib.suppress(AttributeError):
        model.base_model.config.model_type = "gemma3"
    with pytest.raises(ValueError, match=r"gemma3 is refused: .*both ways"):
        choose_attention(model, "auto", device=CPU)
