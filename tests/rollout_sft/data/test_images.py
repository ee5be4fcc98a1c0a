"""Records with images: every problem of an image, or of its place in the prompt, is named by file and line."""

import io
import json
import os
import zlib

import numpy as np
import pytest
from PIL import Image as Pictures

from rollout_sft.data.images import read_images
from rollout_sft.data.records import load_records
from rollout_sft.inputs.images import Image
from tests.rollout_sft.data.image_models import TOKENS, image_adapter, image_tokenizer

TOKENIZER = image_tokenizer()
ADAPTER = image_adapter(TOKENIZER)
PAD = TOKENIZER.convert_tokens_to_ids(TOKENS[0])
OBJECTS = [{"desc": "cat", "bbox_2d": [0, 4, 12, 16]}]
PROMPT = {"prompt": "<image>where?", "images": ["a.png"], "objects": OBJECTS}


@pytest.fixture
def folder(tmp_path):
    """A folder with `a.png` (24 wide, 16 high: 6 tokens) and `b.jpg` (16 wide, 32 high: 8 tokens)."""
    (tmp_path / "data").mkdir()
    picture((24, 16)).save(tmp_path / "data" / "a.png")
    picture((16, 32)).save(tmp_path / "data" / "b.jpg")
    return tmp_path / "data"


def picture(size, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Pictures.fromarray(noise).convert(mode)


def load(folder, *rows, adapter=ADAPTER, **options):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_records(str(path), TOKENIZER, adapter=adapter, **options)


def chat(*contents):
    return [{"role": "user", "content": content} for content in contents]


def test_a_prompt_gets_the_tokens_of_its_images_in_order(folder):
    row = {**PROMPT, "prompt": "<image>and<image>where?", "images": ["a.png", "b.jpg"]}
    sample = load(folder, row)[0]
    text = TOKENIZER.decode([i for i in sample["prompt_ids"]])
    first, second = (f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in (6, 8))
    assert text == f"{first}and{second}where?"
    assert [(i.source, i.height, i.width) for i in sample["images"]] == [
        (str(folder / "a.png"), 16, 24),
        (str(folder / "b.jpg"), 32, 16),
    ]


def test_a_tokenizer_that_lacks_the_token_of_videos_reads_texts(folder, monkeypatch):
    monkeypatch.setattr(ADAPTER, "media_token_ids", ADAPTER.media_token_ids | {10**6})
    assert len(load(folder, {**PROMPT, "prompt": "where?", "images": []})) == 1


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image"}, {"type": "text", "text": "where?"}],
        [{"type": "image", "text": None}, {"type": "text", "text": "where?"}],
        "<image>where?",
        [{"type": "text", "text": "<image>where?"}],
    ],
    ids=["parts", "columns of a table", "text", "text of a part"],
)
def test_every_way_to_write_a_place_gives_the_same_prompt(folder, content):
    row = {"messages": [{"role": "system", "content": "s"}, *chat(content)], "images": ["a.png"], "objects": OBJECTS}
    sample = load(folder, row)[0]
    image = f"<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>"
    assert TOKENIZER.decode(sample["prompt_ids"]) == f"<system>s<user>{image}where?<model>"
    assert len(sample["images"]) == 1


def test_an_image_model_takes_samples_without_an_image(folder):
    sample = load(folder, {"prompt": "where?", "objects": []}, PROMPT)[0]
    assert (sample["images"], PAD in sample["prompt_ids"]) == ((), False)


def test_images_of_a_data_set_stay_encoded(folder):
    from datasets import Dataset, Features, Image, List, Value

    features = Features({"prompt": Value("string"), "objects": List(Value("int32")), "images": List(Image())})
    pictures = [[picture((24, 16)), picture((16, 32))], [picture((8, 8), "L")]]
    rows = {"prompt": ["<image><image>x", "<image>y"], "objects": [[], []], "images": pictures}
    path = folder / "parts" / "train.parquet"
    path.parent.mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(path)
    for source in (path, path.parent):
        loaded = load_records(str(source), TOKENIZER, adapter=ADAPTER)
        assert [[(i.height, i.width) for i in loaded[k]["images"]] for k in range(2)] == [
            [(16, 24), (32, 16)],
            [(8, 8)],
        ]
        assert all(isinstance(i.source, bytes) for k in range(2) for i in loaded[k]["images"])
        assert np.array_equal(loaded[0]["images"][0].pixels(), pictures[0][0])


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P", "L", "LA", "1", "YCbCr"])
def test_every_kind_of_8_bit_pixels_works(folder, mode):
    name = "x.tiff" if mode in ("CMYK", "YCbCr") else "x.png"
    picture((24, 16), mode).save(folder / name)
    (image,) = load(folder, {**PROMPT, "images": [name]})[0]["images"]
    pixels = ADAPTER.media([image])["pixel_values"]
    assert (image.pixels().mode, len(pixels)) == ("RGB", 24)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_a_rotated_photo_has_the_size_that_is_seen(folder, orientation, name):
    exif = Pictures.Exif()
    exif[0x0112] = orientation
    picture((24, 16)).save(folder / name, exif=exif)
    (image,) = load(folder, {**PROMPT, "images": [name]})[0]["images"]
    assert (image.width, image.height) == ((16, 24) if orientation in (6, 8) else (24, 16))
    assert image.pixels().size == (image.width, image.height)


def test_a_rotation_behind_the_pixels_of_a_png_counts(folder):
    exif = Pictures.Exif()
    exif[0x0112] = 6
    data = (folder / "a.png").read_bytes()
    part = b"eXIf" + exif.tobytes()[6:]
    part = (len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
    (folder / "a.png").write_bytes(data[:-12] + part + data[-12:])
    (image,) = load(folder, PROMPT)[0]["images"]
    assert image.pixels().size == (image.width, image.height) == (16, 24)


def test_one_pixel_and_a_long_strip_work(folder):
    picture((1, 1)).save(folder / "dot.png")
    picture((1600, 8)).save(folder / "strip.png")
    row = {**PROMPT, "prompt": "<image><image>", "images": ["dot.png", "strip.png"]}
    assert load(folder, row)[0]["prompt_ids"].count(PAD) == 1 + 200


def damaged(folder):
    """Files that must not train, by name, and what the message says of each."""
    png, jpg = (folder / "a.png").read_bytes(), (folder / "b.jpg").read_bytes()
    gif = io.BytesIO()
    picture((8, 8)).save(gif, "GIF", save_all=True, append_images=[picture((8, 8), "L")])
    wide = io.BytesIO()
    Pictures.new("1", (20_000, 20_000)).save(wide, "PNG")
    bomb = io.BytesIO()
    Pictures.new("1", (10_000, 9_000)).save(bomb, "PNG")
    deep = io.BytesIO()
    Pictures.fromarray(np.full((8, 8), 60_000, dtype=np.uint16)).save(deep, "PNG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    files = {
        "empty.png": (b"", "is no image that can be read"),
        "text.jpg": (b"not an image", "is no image that can be read"),
        "vector.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "is no image that can be read"),
        "cut.png": (png[:-20], "is cut off or damaged: its end is missing"),
        "half.png": (png[: len(png) // 2], "is cut off or damaged"),
        "flipped.png": (bytes(flipped), "is cut off or damaged: part IDAT has another checksum"),
        "cut.jpg": (jpg[:-40], "is cut off or damaged: image file is truncated"),
        "head.jpg": (jpg[:200], "is no image|is cut off or damaged"),
        "frames.gif": (gif.getvalue(), "holds 2 pictures; videos and animations are not trained"),
        "bomb.png": (bomb.getvalue(), "has 10000 x 9000 pixels, more than the 89478485 that are read"),
        "wide.png": (wide.getvalue(), "more than twice the 89478485 pixels"),
        "deep.png": (deep.getvalue(), r"has pixels of kind I;16, more than 8 bits a channel"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: message for name, (_, message) in files.items()}


def test_a_damaged_image_is_refused_by_file_line_and_name(folder):
    for name, message in damaged(folder).items():
        with pytest.raises(ValueError, match=rf"data\.jsonl:2: images\[0\], {name}, .*({message})"):
            load(folder, PROMPT, {**PROMPT, "images": [name]})


def test_encoded_bytes_are_checked_like_a_file(folder):
    from rollout_sft.data.images import read_images

    data = (folder / "b.jpg").read_bytes()
    (image,) = read_images([{"bytes": data, "path": "b.jpg"}], "row 3", folder)
    assert (image.source, image.height, image.width) == (data, 32, 16)
    with pytest.raises(ValueError, match=r"row 3: images\[0\] \(\d+ bytes\) is cut off or damaged"):
        read_images([{"bytes": data[:-40]}], "row 3", folder)
    with pytest.raises(ValueError, match=r"row 3: images\[0\] is a decoded image; give its path or its bytes"):
        read_images([picture((8, 8))], "row 3", folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": ["none.png"]}, r"images\[0\], none\.png, does not exist; paths are taken from .*data"),
        ({"images": ["."]}, r"images\[0\], \., cannot be opened: Is a directory"),
        ({"images": ["a\0b"]}, "cannot be opened: embedded null byte"),
        ({"images": ["http://x/a.png"]}, "images are not fetched: download it"),
        ({"images": "a.png"}, "images is 'a.png'; give a list of paths"),
        ({"images": [None]}, r"images\[0\] is None; give the path"),
        ({"images": []}, "1 places for images .* and 0 images"),
        ({"images": ["a.png", "b.jpg"]}, "1 places for images .* and 2 images"),
        ({"prompt": "where?"}, "0 places for images .* and 1 images"),
        ({"prompt": "<image><|video_pad|>"}, r"holds <\|video_pad\|>, the token of a video"),
        ({"prompt": None, "messages": chat("where?")}, "messages have 0 places for images .*, and images has 1"),
        ({"prompt": None, "messages": chat("<image><image>")}, "messages have 2 places"),
        ({"prompt": None, "messages": chat([{"type": "video"}])}, r"messages\[0\].content\[0\] is a video, which is"),
        (
            {"prompt": None, "messages": chat([{"type": "image", "image": "a.png"}])},
            r"content\[0\] holds 'image'; .*column",
        ),
        ({"prompt": None, "messages": chat([{"type": "image_url"}])}, r"content\[0\] is {'type': 'image_url'}; give"),
        ({"prompt": None, "messages": chat(["<image>"])}, r"content\[0\] is '<image>'; give"),
        ({"prompt": None, "messages": chat(7)}, r"messages\[0\]\.content is 7; give a text, or a list of"),
    ],
)
def test_images_that_do_not_fit_the_prompt_are_refused(folder, row, message):
    bad = {key: value for key, value in {**PROMPT, **row}.items() if value is not None}
    with pytest.raises(ValueError, match=rf"data\.jsonl:2: .*{message}"):
        load(folder, PROMPT, bad)


def test_an_image_that_cannot_be_resized_is_refused(folder):
    picture((4000, 8)).save(folder / "line.png")
    with pytest.raises(ValueError, match=r"data\.jsonl:1: images\[0\], 4000 x 8 pixels, is refused: .*aspect ratio"):
        load(folder, {**PROMPT, "images": ["line.png"]})


def test_a_text_model_refuses_images(folder):
    for adapter in (None, type("Text", (), {"image_token_id": None})()):
        with pytest.raises(ValueError, match=r"data\.jsonl:1: images is \['a\.png'\], but the model reads text alone"):
            load(folder, PROMPT, adapter=adapter)
        messages = chat([{"type": "image"}, {"type": "text", "text": "where?"}])
        with pytest.raises(ValueError, match=r"messages\[0\].content\[0\] is an image, but the model reads text alone"):
            load(folder, {"messages": messages, "objects": []}, adapter=adapter)


def test_a_text_model_reads_parts_of_text_as_one_text(folder):
    messages = chat([{"type": "text", "text": "wh"}, {"type": "text", "text": "ere <image>?"}])
    sample = load(folder, {"messages": messages, "objects": []}, adapter=None)[0]
    assert TOKENIZER.decode(sample["prompt_ids"]) == "<user>where <image>?<model>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", r"writes 0 image tokens <\|image_pad\|>"),
        ("{% for m in messages %}<|image_pad|>{% endfor %}", "leaves out 'where\\?'"),
        ("{{ raise_exception('only texts') }}", "cannot write the messages: only texts"),
        ("{{ messages[9].content.x }}", "cannot write the messages: "),
    ],
)
def test_a_chat_template_that_loses_something_is_refused(folder, monkeypatch, template, message):
    monkeypatch.setattr(TOKENIZER, "chat_template", template)
    with pytest.raises(ValueError, match=rf"data\.jsonl:1: the chat template {message}"):
        load(folder, {"messages": chat("<image>where?"), "images": ["a.png"], "objects": []})


def test_a_prompt_that_is_too_long_is_refused_by_sizes_alone(folder, monkeypatch):
    tokens = len(load(folder, PROMPT)[0]["prompt_ids"])
    monkeypatch.setattr(Pictures.Image, "load", None)
    load(folder, PROMPT, longest_prompt=tokens)
    wanted = (
        rf"data\.jsonl:1: the prompt has {tokens} tokens, 6 of them for images \(24 x 16 pixels\), and {tokens - 1}"
    )
    with pytest.raises(ValueError, match=wanted):
        load(folder, PROMPT, longest_prompt=tokens - 1)


def test_boxes_in_pixels_become_thousandths_of_the_image(folder):
    assert load(folder, PROMPT)[0]["objects"] == OBJECTS
    row = {**PROMPT, "objects": [{"desc": "cat", "bbox_2d": [0, 4, 12.1, 16.4], "score": 1}]}
    assert load(folder, row, boxes="norm1000")[0]["objects"] == [
        {"desc": "cat", "bbox_2d": [0, 250, 504, 1000], "score": 1}
    ]


def test_boxes_that_are_not_in_the_pixels_of_one_image_are_refused(folder):
    row = {**PROMPT, "objects": [{"desc": "cat", "bbox_2d": [0, 250, 500, 1000]}]}
    with pytest.raises(ValueError, match=r"data\.jsonl:1: objects\[0\].bbox_2d is .*, beyond the image of 24 x 16"):
        load(folder, row, boxes="norm1000")
    row = {**PROMPT, "prompt": "<image><image>", "images": ["a.png", "b.jpg"]}
    with pytest.raises(ValueError, match="takes the size of the record's one image, and there are 2"):
        load(folder, row, boxes="norm1000")


@pytest.mark.parametrize(
    "change",
    [
        lambda file: Pictures.new("RGB", (6, 4), "red").save(file),
        lambda file: Pictures.new("RGB", (4, 6), "blue").save(file),
        lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    ],
)
def test_a_file_that_changed_since_its_size_was_found_is_refused(tmp_path, change):
    file = tmp_path / "a.png"
    Pictures.new("RGB", (4, 6), "red").save(file)
    [image] = read_images(["a.png"], "line 1", tmp_path)
    assert image.pixels().size == (4, 6)
    times = file.stat()
    change(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=rf"^the image {file} has .*put it back, or start the run again\.$"):
        image.pixels()


def test_an_image_of_another_size_than_it_says_is_refused():
    pixels = np.zeros((4, 6, 3), np.uint8)
    assert Image(source=pixels, height=4, width=6).pixels().size == (6, 4)
    with pytest.raises(ValueError, match=r"has 6 x 4 pixels, but 4 x 6 when the data were read"):
        Image(source=pixels, height=6, width=4).pixels()
