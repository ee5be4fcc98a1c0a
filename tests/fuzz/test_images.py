"""No damaged image or odd record raises anything but an error with file and line, and what is loaded can be decoded."""

import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures

from rollout_sft.data.records import load_records
from tests.fuzz.cases import cases
from tests.fuzz.values import TEXTS, VALUES
from tests.limits import refusal
from tests.rollout_sft.data.image_models import image_adapter, image_tokenizer

pytestmark = pytest.mark.fuzz

TOKENIZER = image_tokenizer()
ADAPTER = image_adapter(TOKENIZER)


def encoded(kind, **options):
    rng = np.random.default_rng(0)
    picture = Pictures.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8))
    exif = Pictures.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, kind, **({} if kind in ("GIF", "BMP", "PPM") else {"exif": exif}), **options)
    return file.getvalue()


IMAGES = [
    encoded("JPEG"),
    encoded("JPEG", progressive=True),
    *map(encoded, ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")),
]
WAYS = ["cut", "flip", "delete", "insert", "number"]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["cut", "flip", "delete", "insert", "number"]), st.floats(0, 1), st.integers(0, 2**32 - 1)
    ),
    min_size=1,
    max_size=3,
)


def damaged(data, changes):
    for kind, where, number in changes:
        at = min(int(where * len(data)), max(len(data) - 1, 0))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (number % 255 + 1)]) + data[at + 1 :]
        elif kind == "delete":
            data = data[:at] + data[at + number % 9 + 1 :]
        elif kind == "insert":
            data = data[:at] + number.to_bytes(4, "big") + data[at:]
        else:
            data = data[:at] + number.to_bytes(4, "big") + data[at + 4 :]
    return data


@pytest.fixture
def read(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded("PNG"))

    def load_and_decode(path, rows):
        dataset = load_records(str(path), TOKENIZER, adapter=ADAPTER)
        assert len(dataset) == rows
        for i in range(rows):
            for image in dataset[i]["images"]:
                assert image.pixels().size == (image.width, image.height)

    def read(*rows):
        path = tmp_path / "case.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        message = refusal(load_and_decode, path, len(rows))
        assert message is None or re.search(r"case\.jsonl:[1-9]", message), message
        return message

    read.folder = tmp_path
    return read


def record(*images):
    return {"prompt": "<image>" * len(images), "objects": [], "images": list(images)}


def test_the_images_that_are_damaged_below_are_good(read):
    for i, data in enumerate(IMAGES):
        (read.folder / str(i)).write_bytes(data)
    assert read(record(*(str(i) for i in range(len(IMAGES))))) is None


@cases(3000)
@given(data=st.sampled_from(IMAGES), changes=CHANGES)
def test_a_damaged_image_is_decoded_or_refused_by_file_and_line(read, data, changes):
    (read.folder / "bad").write_bytes(damaged(data, changes))
    read(record("good.png"), record("good.png", "bad"))


PART = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image", "video"]) | VALUES, "text": TEXTS})
CONTENT = st.lists(PART | VALUES, max_size=3) | TEXTS | st.sampled_from(["<image>", "<image><image>", "<|image_pad|>"])
ROW = st.fixed_dictionaries(
    {"objects": st.just([])},
    optional={
        "prompt": TEXTS | st.sampled_from(["<image>", "a<image><image>", "<|image_pad|><image>"]),
        "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": CONTENT}), max_size=2),
        "images": st.lists(st.sampled_from(["good.png", "none.png"]) | VALUES, max_size=3) | VALUES,
    },
)


@cases(1000)
@given(row=ROW)
def test_an_odd_record_is_read_whole_or_refused_by_file_and_line(read, row):
    read(record("good.png"), row)
