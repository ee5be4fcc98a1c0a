"""`packsched.torch`: what a trainer of one's own is fed, and the gradient that its window has."""

from itertools import chain

import numpy as np
import pytest
import torch

from examples.small import difference, flat_gradient, make_model, make_samples, unpacked_gradient
from packsched import InfeasibleWindowError, OversizedSegmentError, PackingError, WindowBuffer
from packsched.torch import PackCollator, WindowBatchSampler, backward_window, supervised_tokens


def make_sampler(lengths, **changes):
    return WindowBatchSampler(lengths, **{"packing_length": 96, "micro_steps": 4, "batch_size": 2, **changes})


LENGTHS = [1 + i * 7 % 50 for i in range(61)]


@pytest.mark.parametrize("objective", ["dense", "balanced"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_together_train_every_sample_once(ranks, objective):
    samplers = [make_sampler(LENGTHS, num_replicas=ranks, rank=r, objective=objective) for r in range(ranks)]
    packs = [list(sampler) for sampler in samplers]
    assert {len(own) for own in packs} == {len(samplers[0])}
    assert len(samplers[0]) % 4 == 0, "the Trainer counts whole windows"
    assert sorted(i for own in packs for pack in own for i in pack) == list(range(61))
    assert all(sum(LENGTHS[i] for i in pack) <= 96 for own in packs for pack in own)
    for start in range(0, len(samplers[0]), 4):
        filled = [sum(1 for pack in own[start : start + 4] if pack) for own in packs]
        assert max(filled) - min(filled) <= 1, "packs are dealt round"


def test_each_window_holds_the_samples_of_an_unpacked_step():
    packs = list(make_sampler(LENGTHS, shuffle=False))
    windows = [sorted(chain(*packs[i : i + 4])) for i in range(0, len(packs), 4)]
    assert windows == [list(range(i, min(i + 8, 61))) for i in range(0, 61, 8)]


def test_an_epoch_has_an_order_of_its_own_that_repeats():
    sampler = make_sampler(LENGTHS)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(make_sampler(LENGTHS, seed=1)) != first


def test_a_sample_that_fits_no_pack_is_refused_at_once():
    with pytest.raises(OversizedSegmentError, match="97") as caught:
        make_sampler([3, 97])
    assert (caught.value.index, caught.value.packing_length) == (1, 96)


def test_an_infeasible_window_raises_on_every_rank():
    for rank in (0, 1):
        with pytest.raises(InfeasibleWindowError):
            list(make_sampler([50] * 16, num_replicas=2, rank=rank))


def test_a_rank_outside_the_replicas_is_refused():
    with pytest.raises(PackingError, match="rank is 2, but there are 2 replicas, counted from 0"):
        make_sampler([1], num_replicas=2, rank=2)


def test_a_batch_says_where_its_segments_are():
    batch = PackCollator()([{"input_ids": [7, 8, 9], "labels": [7, -100, 9]}, {"input_ids": [5, 6], "labels": [5, 6]}])
    assert batch["input_ids"].tolist() == [[7, 8, 9, 5, 6]]
    assert batch["labels"].tolist() == [[-100, -100, 9, -100, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["seq_idx"].tolist() == [[0, 0, 0, 1, 1]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 3
    assert batch["use_cache"] is False
    assert "attention_mask" not in batch
    assert supervised_tokens(batch) == 2


def test_the_collator_leaves_the_segments_as_they_were():
    labels = torch.tensor([4, 5])
    PackCollator()([{"input_ids": torch.tensor([4, 5]), "labels": labels}])
    assert labels.tolist() == [4, 5]


def test_an_empty_pack_gives_a_dummy_of_every_field():
    dummy = PackCollator({"input_ids": 3, "labels": -100, "advantages": 0.5})([])
    assert dummy["input_ids"].tolist() == [[3]]
    assert dummy["advantages"].tolist() == [[0.5]]
    assert dummy["cu_seq_lens_q"].tolist() == [0, 1]
    assert supervised_tokens(dummy) == 0


def test_a_segment_without_a_field_is_named():
    with pytest.raises(PackingError, match="segment 1 has no 'labels', only \\['input_ids'\\]"):
        PackCollator()([{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}])


def test_a_field_of_another_length_is_refused():
    with pytest.raises(PackingError, match="segment 0 has encoded_len 2"):
        PackCollator()([{"input_ids": [1, 2], "labels": [1]}])


@pytest.fixture(scope="module")
def model():
    return make_model()


def batches_of(samples, packing_length=192, micro_steps=4):
    window = WindowBuffer(packing_length, micro_steps)
    for sample in samples:
        window.add(sample, len(sample["input_ids"]))
    return [PackCollator()(pack.segments) for pack in window.take_packs()]


def run(model, batches, **kwargs):
    forwards = []

    def loss_sum(batch):
        forwards.append(batch)
        return model(**batch, num_items_in_batch=1).loss

    model.zero_grad()
    return backward_window(model, batches, loss_sum, **kwargs), len(forwards)


def test_the_window_has_the_unpacked_gradient_and_loss(model):
    samples = make_samples(16)
    expected = unpacked_gradient(model, samples)
    loss, forwards = run(model, batches_of(samples))
    assert difference(flat_gradient(model), expected) < 1e-12
    assert forwards == 3, "the idle micro-step is not run"
    total = sum(supervised_tokens(PackCollator()([s])) for s in samples)
    with torch.no_grad():
        alone = sum(float(model(**PackCollator()([s]), num_items_in_batch=total).loss) for s in samples)
    assert float(loss) == pytest.approx(alone, rel=1e-6)


def test_the_weight_is_the_denominator(model):
    samples = make_samples(4)
    expected = unpacked_gradient(model, samples)
    run(model, batches_of(samples), weight=lambda batch: 4.0 * supervised_tokens(batch))
    assert difference(4 * flat_gradient(model), expected) < 1e-12


def test_a_window_without_supervision_is_refused(model):
    with pytest.raises(PackingError, match="no weight on any rank"):
        run(model, [PackCollator()([])])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (torch.ones(1, 3, dtype=torch.int64), r"has the shape \(1, 3\); give one dimension.*return_tensors='pt'"),
        ([[1, 2, 3]], r"has the shape \(1, 3\)"),
        (np.ones((3, 1), dtype=int), r"has the shape \(3, 1\)"),
        (torch.tensor(3), r"has the shape \(\)"),
        ([[1], [2, 3]], "cannot be read as a tensor"),
        (["a"], "cannot be read as a tensor"),
        ([2**70], "cannot be read as a tensor"),
        ([1.0, 2.0, 3.0], "holds torch.float32 and the dummy torch.int64"),
    ],
)
@pytest.mark.parametrize("field", ["input_ids", "labels", "extra"])
def test_a_field_of_another_shape_or_kind_is_refused(field, values, says):
    segment = {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "extra": [1, 2, 3]} | {field: values}
    with pytest.raises(PackingError, match=f"^segment 1: '{field}' {says}"):
        PackCollator({"input_ids": 0, "labels": -100, "extra": 0})(
            [{"input_ids": [1, 2], "labels": [1, 2], "extra": [1, 2]}, segment]
        )


@pytest.mark.parametrize("as_kind", [list, np.array, torch.tensor])
def test_an_attention_mask_that_marks_padding_is_refused(as_kind):
    segment = {"input_ids": as_kind([1, 2, 0]), "labels": as_kind([1, 2, -100])}
    good = PackCollator()([segment | {"attention_mask": as_kind([1, 1, 1])}])
    assert good["input_ids"].tolist() == [[1, 2, 0]]
    with pytest.raises(PackingError, match="segment 0 has an attention_mask with 1 zeros"):
        PackCollator()([segment | {"attention_mask": as_kind([1, 1, 0])}])


def test_a_dummy_without_input_ids_or_with_a_mask_is_refused():
    for dummy in ({"labels": -100}, {"input_ids": 0, "attention_mask": 1}):
        with pytest.raises(PackingError, match="dummy has the fields"):
            PackCollator(dummy)


@pytest.mark.parametrize(
    ("dummy", "values", "dtype"),
    [
        (0.0, [0.1, 0.2], torch.float32),
        (0.0, [1, 2], torch.float32),
        (np.float64(0), [0.1, 0.2], torch.float64),
        (np.float64(0), np.float32([0.1, 0.2]), torch.float64),
        (torch.tensor(0.0, dtype=torch.bfloat16), [0.1, 0.2], torch.bfloat16),
        (0.0, np.array([0.1, 0.2]), torch.float64),
        (0.0, torch.tensor([0.5, 0.25], dtype=torch.float16), torch.float16),
        (0, np.array([1, 2], dtype=np.int32), torch.int32),
        (0, [True, False], torch.int64),
        (0, np.array([True, False]), torch.int64),
        (False, np.array([True, False]), torch.bool),
    ],
)
def test_a_field_has_the_dtype_that_was_asked_for(dummy, values, dtype):
    collate = PackCollator({"input_ids": 0, "extra": dummy})
    row = collate([{"input_ids": [1, 2], "extra": values}])["extra"][0]
    assert row.dtype == dtype
    assert row.tolist() == torch.as_tensor(values, dtype=dtype).tolist()
    if hasattr(dummy, "dtype"):
        assert collate([])["extra"].dtype == dtype
