"""What a rank sends arrives as it was, in messages whose size is known before, and nothing else arrives."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment
from rollout_sft.ranks.exchange import Parcel, _message, _unpack


@dataclass(frozen=True)
class Inner:
    pixels: np.ndarray
    name: str


@dataclass(frozen=True, kw_only=True)
class Everything:
    tensors: dict[str, torch.Tensor]
    inner: tuple[Inner, ...] = ()
    numbers: list[Any] = field(default_factory=list)
    raw: bytes = b""
    made: int = field(init=False, default=3)


def sent(*values, kind):
    parcels = [Parcel.of(value) for value in values]
    message = _message(parcels)
    assert message.numel() == sum(parcel.size for parcel in parcels), (
        "the sizes that ranks share are those of the message"
    )
    return list(_unpack(kind, message, [parcel.size for parcel in parcels]))


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.float16, torch.float32, torch.float64],
)
@pytest.mark.parametrize("shape", [(0,), (3,), (), (2, 0), (5, 3)])
def test_tensors_of_every_kind_arrive_bit_for_bit(dtype, shape):
    tensor = torch.randn(shape).mul(100).to(dtype)
    [found] = sent(Everything(tensors={"a": tensor, "b": torch.arange(3)}), kind=Everything)
    assert found.tensors["a"].dtype == dtype
    assert found.tensors["a"].shape == tensor.shape
    assert torch.equal(found.tensors["a"].view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))
    assert found.tensors["b"].tolist() == [0, 1, 2]


def test_a_segment_with_images_arrives_with_every_field():
    pixels = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)[:, ::2]
    images = (
        Image(source="somewhere/ä.png", height=4, width=6, digest=2**63 - 1),
        Image(source=b"\x89PNG", height=1, width=1),
        Image(source=pixels, height=2, width=3),
    )
    segment = Segment.from_lists([1, 2, 3], [2, 3, 0], [0.1, 1.0, 0.0], indices={"slots": [1]}, sample_id='img "7"')
    segment = Segment(**{**vars(segment), "images": images})
    first, second = sent(segment, Segment.from_lists([5], [5], [0.0]), kind=Segment)
    for name in ("input_ids", "targets", "weights"):
        assert torch.equal(getattr(first, name), getattr(segment, name))
        assert getattr(first, name).dtype == getattr(segment, name).dtype
    assert {name: p.tolist() for name, p in first.indices.items()} == {"slots": [1], "supervised": [0, 1]}
    assert (first.weight_sum, first.sample_id) == (segment.weight_sum, segment.sample_id)
    assert first.images[:2] == images[:2]
    assert np.array_equal(first.images[2].source, pixels)
    assert first.images[2].source.dtype == np.uint8
    assert second.input_ids.tolist() == [5]


def test_numbers_texts_and_containers_keep_their_types():
    numbers = [1, -2.5, 1e-300, True, None, "text", (1, [2, (3,)]), {"a": 0.1}]
    [found] = sent(Everything(tensors={}, numbers=[*numbers, np.float32(0.5)], raw=b"\x00\x01"), kind=Everything)
    assert found.numbers == [*numbers, 0.5]
    assert [type(one) for one in found.numbers] == [*map(type, numbers), float]
    assert (found.raw, found.made) == (b"\x00\x01", 3)


def test_what_arrives_shares_no_memory_with_the_message():
    parcels = [Parcel.of(Everything(tensors={"a": torch.ones(4)}))]
    message = _message(parcels)
    [found] = _unpack(Everything, message, [parcels[0].size])
    message.zero_()
    assert found.tensors["a"].tolist() == [1.0] * 4


def test_a_value_that_cannot_be_sent_is_refused_by_its_type():
    with pytest.raises(TypeError, match="a set cannot be sent to another rank"):
        Parcel.of(Everything(tensors={}, numbers=[{1, 2}]))
    with pytest.raises(TypeError, match="a ndarray cannot be sent"):
        Parcel.of(Everything(tensors={}, numbers=[np.array([object()])]))


def test_a_message_makes_no_object_of_a_class_that_no_field_names():
    @dataclass
    class Stranger:
        number: int

    parcels = [Parcel.of(Everything(tensors={}, numbers=[Stranger(3)]))]
    with pytest.raises(KeyError, match="Stranger"):
        list(_unpack(Everything, _message(parcels), [parcels[0].size]))
