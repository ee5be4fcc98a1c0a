"""What of the training data is compared when a run is resumed."""

import copy
import json
import logging

import numpy as np
import pytest

from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import load_records
from rollout_sft.checkpoint.data_fingerprint import fingerprint
from rollout_sft.checkpoint.settings import ChangedSettingsError
from rollout_sft.data.records import RecordsDataset
from rollout_sft.inputs.images import Image
from tests.rollout_sft.checkpoint.test_changed_settings import RUN

RECORDS = [{"id": str(i), "prompt": f"{i} 0", "objects": [{"desc": "3", "bbox_2d": [0, 0, 8, 8]}]} for i in range(100)]


@pytest.fixture
def load(tmp_path):
    def load(records):
        path = tmp_path / "train.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        return load_records(str(path), build_digits_tokenizer())

    return load


def test_a_change_of_any_record_is_noticed(load):
    first = fingerprint(load(RECORDS))
    assert first == fingerprint(load(RECORDS))
    assert fingerprint(load(RECORDS[:99]))["data.train"] != first["data.train"]
    for at in (0, 1, 50, 98):
        changed = copy.deepcopy(RECORDS)
        changed[at]["objects"][0]["bbox_2d"][3] = 9
        assert fingerprint(load(changed))["data.train.records"] != first["data.train.records"], at
    swapped = [*RECORDS[:3], RECORDS[4], RECORDS[3], *RECORDS[5:]]
    assert fingerprint(load(swapped))["data.train.records"] != first["data.train.records"]


def test_a_resume_with_one_changed_record_is_refused(load, make_trainer, tmp_path, caplog):
    make_trainer(train=load(RECORDS[:18]), max_steps=1, **RUN).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-1")
    changed = copy.deepcopy(RECORDS[:18])
    changed[7]["objects"][0]["desc"] = "4"
    with pytest.raises(ChangedSettingsError, match=r"data\.train\.records was '18 records, .* is '18 records, "):
        make_trainer(train=load(changed), max_steps=2, **RUN).train(resume_from_checkpoint=checkpoint)
    allowed = make_trainer(train=load(changed), max_steps=2, **RUN, resume_with_changes=["data.train.records"])
    with caplog.at_level(logging.WARNING):
        allowed.train(resume_from_checkpoint=checkpoint)
    assert allowed.state.global_step == 2
    assert "resumed with data.train.records: '18 records, " in caplog.text


def test_images_count_by_their_place_their_size_and_their_bytes():
    images = [Image(source=source, height=2, width=4) for source in ("a.png", b"a", np.zeros((2, 4, 3), np.uint8))]
    others = [Image(source=source, height=2, width=4) for source in ("b.png", b"b", np.ones((2, 4, 3), np.uint8))]
    images.append(Image(source="a.png", height=3, width=4))
    others.append(Image(source="a.png", height=2, width=4))

    class NoPrompts:
        def encode(self, record):
            return [1]

    def of(image):
        return fingerprint(RecordsDataset([{"id": "1", "images": (image,), "object": object()}], NoPrompts()))

    for image, other in zip(images, others, strict=True):
        assert of(image) == of(copy.deepcopy(image)) != of(other)


def test_other_data_sets_count_by_their_length_and_a_few_prompts():
    data = [{"id": i, "prompt_ids": [i, 2]} for i in range(100)]
    assert fingerprint(data) == fingerprint([dict(sample) for sample in data])
    assert fingerprint(data) != fingerprint(data[:99])
    assert fingerprint(data) != fingerprint([*data[:99], {"id": 99, "prompt_ids": [99, 3]}])
    assert fingerprint(iter(data)) == {"data.train": "a stream"}
