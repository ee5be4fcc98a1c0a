"""What an input adapter adds to token ids, compared with what the model itself makes of the same segment."""

import pytest
import torch
from transformers import AutoConfig

from rollout_sft.inputs.choose import IMAGE_MODELS, make_adapter
from rollout_sft.inputs.segment import Segment, pack_of
from tests.tiny_images import (
    END,
    IMAGE,
    PLAIN_VISION,
    QWEN_VL,
    START,
    VIDEO,
    image_config,
    image_model,
    image_processor,
    image_tokenizer,
    picture,
)


def make(family):
    return make_adapter(image_config(family), image_tokenizer(), image_processor(family))


def segment_of(adapter, *sizes, response=(20, 21, 22)):
    """A prompt with one image of each size, and a response."""
    images = tuple(picture(height, width, seed) for seed, (height, width) in enumerate(sizes))
    prompt = [11, 12, *[token for _ in images for token in (START, IMAGE, END)], 13]
    ids = [*adapter.expand(prompt, images), *response]
    return Segment.from_lists(ids, ids, [1.0] * (len(ids) - 1) + [0.0], images=images, sample_id="s")


@pytest.mark.parametrize("family", QWEN_VL)
def test_mrope_positions_are_those_that_the_model_makes(family):
    model, adapter = image_model(family), make(family)
    for segment in (segment_of(adapter, (16, 24)), segment_of(adapter, (40, 8), (9, 30)), adapter.dummy()):
        types = adapter.padded([segment.input_ids], width=segment.encoded_len, left=False)["mm_token_type_ids"]
        grids = adapter.media(segment.images)["image_grid_thw"]
        rows, _ = model.model.get_rope_index(segment.input_ids[None], types, image_grid_thw=grids)
        assert torch.equal(adapter.positions(segment)[1:], rows[:, 0])
        assert torch.equal(adapter.positions(segment)[0], torch.arange(segment.encoded_len))


def test_positions_of_a_pack_restart_at_each_segment():
    adapter = make("qwen3_vl")
    segments = [segment_of(adapter, (16, 24)), segment_of(adapter), segment_of(adapter, (8, 8), (24, 16))]
    positions = adapter.packed(pack_of(segments))["position_ids"]
    assert positions.shape == (4, 1, sum(s.encoded_len for s in segments))
    assert torch.equal(positions[:, 0], torch.cat([adapter.positions(s) for s in segments], dim=1))


def test_sizes_alone_say_how_many_tokens_an_image_has():
    adapter = make("qwen2_5_vl")
    for seed, (height, width) in enumerate([(16, 24), (1, 1), (100, 300), (7, 9), (33, 8)]):
        image = picture(height, width, seed)
        _, rows, columns = adapter.media([image])["image_grid_thw"][0].tolist()
        assert adapter.image_tokens(image) == rows * columns // 4
        assert adapter.seen_size(image) == (rows * 4, columns * 4)


def test_a_small_image_of_a_user_is_enlarged_and_the_dummy_is_not():
    adapter = make_adapter(
        image_config("qwen3_vl"), image_tokenizer(), type(image_processor("qwen3_vl"))(patch_size=4, min_pixels=1024)
    )
    dummy = adapter.dummy()
    assert (dummy.encoded_len, dummy.weight_sum) == (1, 0)
    assert adapter.media(dummy.images)["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert adapter.image_tokens(picture(8, 8)) == 16


def test_media_of_several_segments_join_in_the_order_of_their_tokens():
    adapter = make("qwen2_vl")
    images = [picture(16, 24, 1), picture(8, 8, 2), picture(24, 16, 3)]
    together = adapter.media(images)
    alone = [adapter.media([image]) for image in images]
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(together[name], torch.cat([one[name] for one in alone]))


def test_expand_is_undone_by_collapse():
    adapter = make("qwen3_vl")
    images = (picture(16, 24), picture(8, 16))
    prompt = [11, START, IMAGE, END, 12, START, IMAGE, END]
    expanded = adapter.expand(prompt, images)
    assert expanded == [11, START, *[IMAGE] * 6, END, 12, START, *[IMAGE] * 2, END]
    assert adapter.collapse(expanded, images) == prompt


@pytest.mark.parametrize("images", [0, 1, 3])
def test_more_or_fewer_images_than_places_are_refused(images):
    adapter = make("qwen3_vl")
    with pytest.raises(ValueError, match=f"2 places for images .token 2. and {images} images"):
        adapter.expand([START, IMAGE, END, START, IMAGE, END], [picture(8, 8)] * images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: [*ids, IMAGE], "position 12 belongs to no image"),
        (lambda ids: [i for i in ids if i != IMAGE], "there are none for image 0"),
        (lambda ids: ids[:2] + ids[3:], "image 0 needs 4 of them from 1 on"),
        (lambda ids: [*ids[:2], IMAGE, *ids[2:]], "image 1 needs 2 of them from 5 on"),
        # 5 and 1 instead of 4 and 2: the sum is right, and a pack would train it
        (lambda ids: [*ids[:2], IMAGE, *ids[2:9], *ids[10:]], "image 1 needs 2 of them from 5 on"),
        (lambda ids: [*ids, VIDEO], "position 12 stands for a video"),
    ],
)
def test_a_wrong_count_of_image_tokens_names_segment_and_counts(change, message):
    adapter = make("qwen3_vl")
    images = (picture(16, 16), picture(8, 16))
    ids = adapter.expand([11, START, IMAGE, END, START, IMAGE, END, 12][1:], images)
    assert ids == [START, *[IMAGE] * 4, END, START, *[IMAGE] * 2, END, 12]
    adapter.check(Segment.from_lists(ids, ids, [0.0] * len(ids), images=images, sample_id="kite"))
    changed = change([*ids, 14])
    with pytest.raises(ValueError, match=f"(?s)segment of sample 'kite': .*({message})"):
        adapter.check(Segment.from_lists(changed, changed, [0.0] * len(changed), images=images, sample_id="kite"))


def test_images_without_a_token_between_them_are_refused():
    adapter = make("qwen3_vl")
    ids, images = [START, IMAGE, IMAGE, END], (picture(8, 8), picture(8, 8))
    with pytest.raises(ValueError, match="images 0 and 1 follow each other"):
        adapter.check(Segment.from_lists(ids, ids, [0.0] * 4, images=images))


@pytest.mark.parametrize("left", [True, False])
def test_token_types_of_a_rectangle_mark_images_alone(left):
    adapter = make("qwen2_vl")
    rows = [torch.tensor([START, IMAGE, IMAGE, END]), torch.tensor([11, 12])]
    types = adapter.padded(rows, width=5, left=left)["mm_token_type_ids"].tolist()
    assert types == ([[0, 0, 1, 1, 0], [0] * 5] if left else [[0, 1, 1, 0, 0], [0] * 5])


def test_text_models_get_nothing_and_refuse_images():
    adapter = make_adapter(AutoConfig.for_model("qwen3"), image_tokenizer())
    segment = Segment.from_lists([11, 12], [11, 12], [1.0, 0.0])
    assert (adapter.packed(pack_of([segment])), adapter.media([]), adapter.dummy()) == ({}, {}, None)
    with pytest.raises(ValueError, match="sample 'a' has images, but the model reads text alone"):
        adapter.check(Segment.from_lists([11], [11], [0.0], images=(picture(8, 8),), sample_id="a"))


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "mllama", "glm4v", "qwen2_5_omni_thinker", "pixtral_unheard"])
def test_other_image_models_are_refused_by_name(name):
    if name == "pixtral_unheard":
        config = image_config("qwen3_vl")
        config.model_type = name
    else:
        config = AutoConfig.for_model(name)
    with pytest.raises(ValueError, match=f"{name} is refused: it reads images, and .*{IMAGE_MODELS[0]}"):
        make_adapter(config, image_tokenizer(), image_processor("qwen3_vl"))


def test_an_image_model_names_what_it_lacks():
    config = image_config("qwen3_vl")
    with pytest.raises(ValueError, match="there is no image processor"):
        make_adapter(config, image_tokenizer())
    with pytest.raises(ValueError, match="merge_size 2, but Qwen2VLImageProcessorPil has 1"):
        make_adapter(config, image_tokenizer(), type(image_processor("qwen3_vl"))(patch_size=4, merge_size=1))
    with pytest.raises(ValueError, match="qwen3 reads text alone"):
        make_adapter(AutoConfig.for_model("qwen3"), image_tokenizer(), image_processor("qwen3_vl"))
    config.image_token_id = 1000
    with pytest.raises(ValueError, match="image token is 1000, but the tokenizer has 64"):
        make_adapter(config, image_tokenizer(), image_processor("qwen3_vl"))


SIDES = [(16, 16), (1, 40), (40, 1), (16, 24), (9, 30), (64, 16), (33, 47), (100, 300), (480, 640), (8, 16)]


@pytest.mark.parametrize("family", PLAIN_VISION)
def test_a_model_sees_as_many_tokens_as_sizes_alone_say(family):
    model, adapter = image_model(family, torch.float32), make(family)
    images = [picture(*sides, seed) for seed, sides in enumerate(SIDES)]
    for image in [*images, *adapter.dummy().images]:
        seen = sum(len(part) for part in model.get_image_features(**adapter.media([image])).pooler_output)
        assert adapter._run_of(image).count(IMAGE) == seen, (image.height, image.width)
    together = model.get_image_features(**adapter.media(images)).pooler_output
    assert sum(len(part) for part in together) == sum(adapter._run_of(image).count(IMAGE) for image in images)


@pytest.mark.parametrize("family", PLAIN_VISION)
def test_expand_is_undone_by_collapse_with_tokens_around_images(family):
    adapter = make(family)
    images = (picture(16, 24), picture(40, 16))
    prompt = [11, IMAGE, 12, IMAGE, 13]
    ids = adapter.expand(prompt, images)
    assert len(ids) == 3 + sum(adapter.image_tokens(image) for image in images)
    assert adapter.collapse(ids, images) == prompt
    adapter.check(Segment.from_lists(ids, ids, [0.0] * len(ids), images=images))
    with pytest.raises(ValueError, match="image tokens"):
        adapter.check(Segment.from_lists(ids, ids, [0.0] * len(ids), images=images[::-1]))


def test_lines_of_mistral3_end_with_their_own_token():
    adapter = make("mistral3")
    assert adapter.expand([IMAGE], [picture(16, 24)]) == [IMAGE, IMAGE, IMAGE, 6, IMAGE, IMAGE, IMAGE, 7]
    with pytest.raises(ValueError, match="an image of 8 x 5 pixels is one token for mistral3"):
        adapter.expand([IMAGE], [picture(8, 5)])
