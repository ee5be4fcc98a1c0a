"""Digits as images: the pictures, their boxes in thousandths, the tokenizer, and the configuration that trains them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from examples.digits.images import build_image_tokenizer, load_image_digits
from examples.digits.pictures import DrawCanvases
from rollout_sft.config.run import load_run
from rollout_sft.inputs.text import TextInputs
from rollout_sft.parts import load_parts
from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

TOKENIZER = build_image_tokenizer()


@pytest.fixture(scope="module")
def parts():
    return [load_parts(stage) for stage in load_run("configs/quickstart-images.yaml")]


def iterate(dataset, most=40):
    return (dataset[i] for i in range(min(len(dataset), most)))


def test_a_digit_lies_in_its_box_and_nothing_outside(parts):
    for sample in iterate(parts[0].eval):
        (image,) = sample["images"]
        pixels = np.array(image.pixels())
        assert pixels.shape == (40, 40, 3)
        left = pixels.copy()
        for item in parts[0].eval.to_pixels(sample["objects"]):
            x1, y1, x2, y2 = map(int, item["bbox_2d"])
            assert [x1 % 8, y1 % 8, x2 - x1, y2 - y1] == [0, 0, 8, 8]
            assert pixels[y1:y2, x1:x2].max() > 100
            left[y1:y2, x1:x2] = 0
        assert not left.any()


def test_an_answer_is_known_tokens_and_comes_back(parts):
    for sample in iterate(parts[0].train):
        text = json.dumps(sample["objects"])
        ids = TOKENIZER(text)["input_ids"]
        assert TOKENIZER.unk_token_id not in ids
        assert TOKENIZER.decode(ids) == text
        assert len(ids) == 12 * len(sample["objects"]) + 1


def test_the_prompt_holds_one_token_for_each_8_pixels(parts):
    sample = parts[0].eval[0]
    expected = ["<|vision_start|>", *["<|image_pad|>"] * 25, "<|vision_end|>", "<ans>"]
    assert TOKENIZER.convert_ids_to_tokens(sample["prompt_ids"]) == expected


def test_the_most_digits_rise_and_items_depend_on_seed_and_index(parts):
    train = parts[0].train
    assert [train.most_digits(i) for i in (0, len(train) - 1)] == [2, 12]
    assert train[3]["objects"] == train[3]["objects"] != parts[1].train[3]["objects"]


def test_a_text_model_is_refused():
    with pytest.raises(ValueError, match="the model reads text alone"):
        load_image_digits(tokenizer=TOKENIZER, adapter=TextInputs(), split="eval", size=1, seed=0)


def test_the_picture_draws_images_with_boxes_in_pixels(parts, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "examples.digits.pictures.draw_canvases", lambda *lists: drawn.update(zip("cpt", lists, strict=False))
    )

    def roll_out(samples):
        ids = [TOKENIZER(json.dumps(s["objects"]))["input_ids"] for s in samples]
        return [Rollout(response_ids=i, truncated=False) for i in ids]

    trainer = SimpleNamespace(
        target_builder=ObjectsTargetBuilder(tokenizer=TOKENIZER), roll_out=roll_out, eval_dataset=parts[0].eval
    )
    args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(is_world_process_zero=True)
    DrawCanvases(trainer, canvases=3).on_train_end(args, state, None)
    assert drawn["p"] == drawn["t"]
    assert len(drawn["p"]) == len(drawn["c"]) == 3
    for canvas, objects in zip(drawn["c"], drawn["p"], strict=True):
        for x1, y1, x2, y2 in (item["bbox_2d"] for item in objects):
            assert (x2 - x1, y2 - y1) == (8, 8)
            assert canvas[int(y1) : int(y2), int(x1) : int(x2)].any()
