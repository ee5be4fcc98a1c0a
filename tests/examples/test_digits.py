"""Digits: the canvases, their tokens and the splits."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoTokenizer

from examples.digits import canvas as canvas_module
from examples.digits.canvas import SPLITS, canvas_tokens, codebook, paint
from examples.digits.data import DigitsDataset
from examples.digits.pictures import DrawCanvases, draw_canvases
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

TOKENIZER = build_digits_tokenizer()


def test_the_vocabulary_has_96_tokens_an_end_and_padding():
    assert len(TOKENIZER) == 96
    assert {TOKENIZER.eos_token, TOKENIZER.pad_token, TOKENIZER.unk_token} == {"<eos>", "<pad>", "<unk>"}
    assert build_digits_tokenizer().get_vocab() == TOKENIZER.get_vocab()


@pytest.mark.parametrize("count", [1, 2, 12])
def test_an_answer_takes_12_tokens_for_each_digit_and_one_besides_the_end(count):
    objects = next(s["objects"] for s in iterate(DigitsDataset("train", 400)) if len(s["objects"]) == count)
    text = json.dumps(objects)
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == 12 * count + 1
    assert TOKENIZER.unk_token_id not in ids
    assert TOKENIZER.decode(ids) == text


def test_the_tokenizer_survives_saving(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = json.dumps(DigitsDataset("eval", 1)[0]["objects"])
    assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)


def iterate(dataset):
    return (dataset[i] for i in range(len(dataset)))


def test_an_item_depends_on_split_seed_and_index_alone():
    long, short = DigitsDataset("train", 50, 3), DigitsDataset("train", 10, 3)
    assert [long[i] for i in (9, 0, 5)] == [short[i] for i in (9, 0, 5)]
    assert long[0]["prompt_ids"] != DigitsDataset("train", 50, 4)[0]["prompt_ids"]
    boxes = [[o["bbox_2d"] for o in DigitsDataset(split, 50, 3)[0]["objects"]] for split in SPLITS]
    assert boxes[0] != boxes[1] != boxes[2]
    assert len({s["id"] for split in SPLITS for s in iterate(DigitsDataset(split, 20))}) == 60


def test_another_process_with_other_threads_paints_and_codes_the_same():
    script = (
        # The file alone: the package would import torch, and that takes long.
        f"import sys; sys.path.insert(0, {str(Path(canvas_module.__file__).parent)!r})\n"
        "import numpy as np; from canvas import canvas_tokens, paint\n"
        "print([canvas_tokens(paint(np.random.default_rng(k), 'train', 12)[0]) for k in range(5)])"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True).stdout
    painted = [paint(np.random.default_rng(k), "train", 12)[0] for k in range(5)]
    assert printed.strip() == str([canvas_tokens(canvas) for canvas in painted])


def test_digits_do_not_overlap_and_stand_on_the_grid_in_reading_order():
    for s in iterate(DigitsDataset("train", 200)):
        boxes = [o["bbox_2d"] for o in s["objects"]]
        assert all(x % 4 == 0 and y % 8 == 0 and (X - x, Y - y) == (8, 8) for x, y, X, Y in boxes)
        assert all(x >= 0 and X <= 40 and y >= 0 and Y <= 40 for x, y, X, Y in boxes)
        assert boxes == sorted(boxes, key=lambda box: (box[1], box[0]))
        assert all(a[1] != b[1] or abs(a[0] - b[0]) >= 8 for a in boxes for b in boxes if a is not b)


def test_the_counts_are_spread_from_1_to_the_most():
    counts = np.bincount([len(s["objects"]) for s in iterate(DigitsDataset("train", 600, max_digits=6))], minlength=7)
    assert counts[0] == 0
    assert len(counts) == 7
    assert counts[1:].min() > 60


def test_the_most_digits_rises_over_the_first_share_of_the_items():
    dataset = DigitsDataset("train", 100, ramp_fraction=0.5)
    most = [dataset.most_digits(i) for i in range(100)]
    assert most[0] == 2
    assert most == sorted(most)
    assert set(most[50:]) == {12}
    assert most[25] == 7
    assert all(len(dataset[i]["objects"]) <= most[i] for i in range(100))
    assert DigitsDataset("train", 100).most_digits(0) == 12
    assert DigitsDataset("train", 100, max_digits=1, ramp_fraction=1.0).most_digits(0) == 1


def test_splits_use_disjoint_images_and_cover_all_classes():
    used = [set(canvas_module._images_of(split).tolist()) for split in SPLITS]
    assert sum(map(len, used)) == len(set().union(*used)) == 1797
    _, labels = canvas_module._digits()
    for images in used:
        assert np.bincount(labels[list(images)], minlength=10).min() >= 15


def test_only_training_images_get_noise():
    images, _ = canvas_module._digits()
    known = {image.tobytes() for image in images}

    def crops(split):
        dataset = DigitsDataset(split, 10)
        for i in range(10):
            for x, y, X, Y in (o["bbox_2d"] for o in dataset[i]["objects"]):
                yield np.ascontiguousarray(dataset.canvas(i)[y:Y, x:X])

    assert all(crop.tobytes() in known for crop in crops("eval"))
    assert not any(crop.tobytes() in known for crop in crops("train"))
    assert all(crop.min() >= 0 and crop.max() <= 16 for crop in crops("train"))


def test_the_prompt_writes_the_inked_columns_of_each_band():
    dataset = DigitsDataset("eval", 20)
    for i in range(20):
        tokens = TOKENIZER.convert_ids_to_tokens(dataset[i]["prompt_ids"])
        pixels = dataset.canvas(i)
        assert tokens.pop() == "<ans>"
        inked = []
        while tokens:
            if tokens[0] == "<row>":
                y = int(tokens[1])
                tokens = tokens[2:]
            x, top, bottom, *tokens = tokens
            inked.append((y, int(x)))
            for code, row in ((top, y), (bottom, y + 4)):
                centre = codebook()[int(code[2:4])]
                patch = pixels[row : row + 4, int(x) : int(x) + 4].ravel()
                distances = ((codebook() - patch) ** 2).sum(axis=1)
                assert ((centre - patch) ** 2).sum() == pytest.approx(distances.min())
        ink = {(y, x) for y in range(0, 40, 8) for x in range(0, 40, 4) if pixels[y : y + 8, x : x + 4].any()}
        assert inked == sorted(ink)


def test_samples_fit_229_tokens():
    longest = [s for s in iterate(DigitsDataset("train", 300)) if len(s["objects"]) == 12]
    assert max(len(s["prompt_ids"]) for s in longest) + 12 * 12 + 2 <= 229


def test_the_codebook_is_quick_and_always_the_same():
    codebook()
    begin = time.process_time()
    again = codebook.__wrapped__()
    assert time.process_time() - begin < 3
    assert again.tobytes() == codebook().tobytes()
    assert again.shape == (64, 16)
    assert len(np.unique(again, axis=0)) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split is 'dev'; the digits have train, eval, test"),
        ({"size": 0}, "size is 0; an empty data set"),
        ({"seed": -1}, "seed is -1"),
        ({"max_digits": 16}, "max_digits is 16; a canvas has room for 1 to 15"),
        ({"max_digits": 0}, "max_digits is 0"),
        ({"ramp_fraction": 1.5}, r"ramp_fraction is 1\.5"),
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsDataset(**{"split": "train", "size": 4, **arguments})


def test_the_most_digits_always_find_a_place():
    for seed in range(100):
        _, objects = paint(np.random.default_rng(seed), "train", 15)
        assert len(objects) == 15


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_ends_iteration(index):
    with pytest.raises(IndexError, match="of 4 canvases"):
        DigitsDataset("train", 4)[index]


def test_the_picture_shows_what_the_trained_model_answers(tmp_path):
    asked = []

    def roll_out(samples):
        asked.extend(samples)
        return [
            Rollout(response_ids=TOKENIZER(json.dumps(s["objects"]))["input_ids"], truncated=False) for s in samples
        ]

    trainer = SimpleNamespace(
        target_builder=ObjectsTargetBuilder(tokenizer=TOKENIZER),
        roll_out=roll_out,
        eval_dataset=DigitsDataset("eval", 9, 5, max_digits=3),
    )

    def end_of_training(folder, *, rank=0):
        args, state = SimpleNamespace(output_dir=folder), SimpleNamespace(is_world_process_zero=rank == 0)
        DrawCanvases(trainer, canvases=3).on_train_end(args, state, None, model=None)

    end_of_training(tmp_path / "run")
    assert (tmp_path / "run" / "canvases.png").read_bytes().startswith(b"\x89PNG")
    assert asked == [DigitsDataset("test", 3, 5, max_digits=3)[i] for i in range(3)]
    end_of_training(tmp_path / "other", rank=1)
    assert len(asked) == 6, "the other ranks predict"
    trainer.target_builder = object()
    end_of_training(tmp_path / "other")
    trainer.target_builder, trainer.eval_dataset = ObjectsTargetBuilder(tokenizer=TOKENIZER), None
    end_of_training(tmp_path / "other")
    assert len(asked) == 6, "other answers and other data are not drawn"
    assert not (tmp_path / "other").exists()


def test_the_picture_is_written_where_it_should_be(tmp_path):
    dataset = DigitsDataset("test", 3)
    truths = [dataset[i]["objects"] for i in range(3)]
    predicted = [truths[0], [], [{"desc": "$", "bbox_2d": [0.5, 0, 8, 8]}]]
    path = tmp_path / "new" / "canvases.png"
    draw_canvases([dataset.canvas(i) for i in range(3)], predicted, truths, path, columns=2)
    assert path.read_bytes().startswith(b"\x89PNG")
