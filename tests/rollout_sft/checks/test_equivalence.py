"""The math-equivalence mode passes what is right and names what is wrong: segment, field and position."""

from dataclasses import replace

import pytest
import torch

from rollout_sft.checks.equivalence import ScheduleMismatchError, check_bookkeeping
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.step.collate import collate_pack
from tests.rollout_sft.checks.test_leak_probe import model_of

MODES = [{"post_rollout_pack_scope": "micro"}, {"post_rollout_pack_scope": "window"}]


@pytest.mark.parametrize("scope", MODES, ids=["micro", "window"])
@pytest.mark.parametrize("reduction", ["token", "segment", "micro"])
def test_every_window_of_a_run_is_equivalent(make_trainer, scope, reduction):
    trainer = make_trainer(max_steps=2, validate_schedule="every_window", loss_reduction=reduction, **scope)
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(lines) == 2
    for line in lines:
        assert line["equivalence/gradient"] < 1e-10
        assert line["equivalence/loss"] < 1e-10


def test_validation_leaves_no_trace_in_the_training(make_trainer, make_model):
    runs = []
    for mode in ("off", "every_window"):
        trainer = make_trainer(
            model=make_model(attention_dropout=0.1), max_steps=2, validate_schedule=mode, **MODES[1], learning_rate=1e-2
        )
        trainer.train()
        runs.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        assert trainer.model.training
    assert torch.equal(*runs)


def test_first_window_is_checked_once(make_trainer):
    trainer = make_trainer(max_steps=2, validate_schedule="first_window", **MODES[1])
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert ["equivalence/gradient" in line for line in lines] == [True, False]


def test_a_leaking_model_is_a_mismatch_of_the_gradient(make_trainer, tokenizer):
    model = model_of(
        "opt", torch.float64, vocab_size=len(tokenizer), ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=900
    )
    trainer = make_trainer(
        model=model, check_isolation=False, validate_schedule="first_window", attention="model", **MODES[1]
    )
    with pytest.raises(ScheduleMismatchError, match="gradient by"):
        trainer.train()


def test_a_wrong_denominator_is_a_mismatch(make_trainer):
    trainer = make_trainer(validate_schedule="first_window", **MODES[1])
    compute = trainer.compute_loss

    def per_pack_mean(model, inputs, return_outputs=False, num_items_in_batch=None):
        if "seq_idx" in inputs and inputs["weights"].numel():
            num_items_in_batch = inputs["weights"].sum().item()
        return compute(model, inputs, return_outputs, num_items_in_batch)

    trainer.compute_loss = per_pack_mean
    with pytest.raises(ScheduleMismatchError, match="disagree"):
        trainer.train()


def segments():
    made = []
    for i, n in enumerate((5, 7, 4)):
        ids = list(range(10 * i, 10 * i + n))
        weights = [0.0, *[1.0] * (n - 2), 0.0]
        made.append(
            Segment.from_lists(ids, [t + 1 for t in ids], weights, indices={"coord": [1, n - 2]}, sample_id=f"s{i}")
        )
    return made


def window():
    due = segments()
    return due, [collate_pack(pack_of(packed), filler_id=0) for packed in (due[:2], due[2:], [])]


def test_a_right_window_passes():
    check_bookkeeping(*window())


PLANTED = {
    "a target of another segment": ("targets", r"'s0', field targets, position 1"),
    "a weight too many": ("weights", r"'s0', field weights, position 1"),
    "positions that do not restart": ("position_ids", r"'s1', field position_ids, position 0"),
    "two tokens swapped": ("input_ids", r"'s0', field input_ids, position 3"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_first_difference_is_named(name):
    field, message = PLANTED[name]
    due, batches = window()
    batch = batches[0]
    if field == "targets":
        batches[0] = replace(batch, targets=batch.targets.roll(3))
    elif field == "weights":
        batches[0] = replace(batch, weights=batch.weights * 2)
    elif field == "position_ids":
        batch.forward["position_ids"] = torch.arange(12)[None]
    else:
        batch.forward["input_ids"] = batch.forward["input_ids"][:, [0, 1, 2, 4, 3, 5, 6, 7, 8, 9, 10, 11]]
    with pytest.raises(ScheduleMismatchError, match=f"micro-step 0, segment of sample {message}"):
        check_bookkeeping(due, batches)


def test_a_logits_index_off_by_one_is_named():
    due, batches = window()
    batches[0].forward["logits_to_keep"] = batches[0].forward["logits_to_keep"] + 1
    with pytest.raises(ScheduleMismatchError, match="'s0', field targets, position 1"):
        check_bookkeeping(due, batches)


def test_an_index_field_remapped_wrongly_is_named(monkeypatch):
    from packsched import PackLayout

    right = PackLayout.remap
    monkeypatch.setattr(PackLayout, "remap", lambda self, i, p: right(self, 0, p) if i == 1 else right(self, i, p))
    due, batches = window()
    with pytest.raises(ScheduleMismatchError, match="'s1', field coord, position 1"):
        check_bookkeeping(due, batches)


def test_lost_doubled_and_foreign_segments_are_named():
    due, batches = window()
    with pytest.raises(ScheduleMismatchError, match="'s2' is in no micro-step"):
        check_bookkeeping(due, [batches[0], batches[2], batches[2]])
    with pytest.raises(ScheduleMismatchError, match="'s0' is scheduled twice"):
        check_bookkeeping(due, [batches[0], batches[0], batches[2]])
    with pytest.raises(ScheduleMismatchError, match="'s2' is scheduled but was never built"):
        check_bookkeeping(due[:2], batches)


def test_a_dummy_with_a_weight_is_refused():
    due, batches = window()
    batches[2] = replace(batches[2], weights=torch.ones(1))
    with pytest.raises(ScheduleMismatchError, match="micro-step 2 has no segment"):
        check_bookkeeping(due, batches)
