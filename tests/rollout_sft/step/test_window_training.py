"""Document 000, "When enabled, the trainer": each bullet is a test; then what the micro-steps must never do."""

import pytest
import torch
from torch.utils.data import IterableDataset

from examples.digits.data import DigitsDataset
from packsched import BufferOverflowError, InfeasibleWindowError, OversizedSegmentError
from rollout_sft import Rollout
from rollout_sft.data.samples import MicroBatch
from rollout_sft.step.build import WindowBuilder

WINDOW = {"post_rollout_pack_scope": "window"}
MICRO = {"post_rollout_pack_scope": "micro"}


def record_micro_steps(trainer):
    """Counts forward/backward micro-steps and notes how many tokens each had and whether gradients were synced."""
    seen = []
    original = trainer.training_step

    def training_step(model, inputs, num_items_in_batch=None):
        loss = original(model, inputs, num_items_in_batch)
        seen.append(
            {
                "tokens": inputs["input_ids"].numel(),
                "supervised": sum(batch.targets.numel() for batch in inputs["micro_step"].batches),
                "sync": trainer.accelerator.sync_gradients,
                "step": trainer.state.global_step,
                "backward": all(p.grad is not None for p in model.parameters()),
            }
        )
        return loss

    trainer.training_step = training_step
    return seen


def record_batches(trainer):
    """Remembers what each window handed to the Trainer."""
    windows = []
    original = trainer.get_batch_samples

    def get_batch_samples(epoch_iterator, num_batches, device):
        batches, weight = original(epoch_iterator, num_batches, device)
        windows.append((num_batches, batches, weight))
        return batches, weight

    trainer.get_batch_samples = get_batch_samples
    return windows


def test_1_generates_rollouts_per_microbatch_as_before(make_trainer):
    trainer = make_trainer(**WINDOW)
    requests = []
    generate = trainer.generation.train.generate

    def spy(asked):
        requests.extend(asked)
        return generate(asked)

    trainer.generation.train.generate = spy
    trainer.train()
    dataset = trainer.train_dataset
    assert [r.prompt_ids for r in requests] == [dataset[i]["prompt_ids"] for i in range(9)]
    assert len({r.seed for r in requests}) == 9, "every sample has a seed of its own"


def test_2_parses_matches_and_builds_one_post_rollout_segment_per_sample(make_trainer):
    trainer = make_trainer(**WINDOW)
    trainer.train()
    assert [s.sample_id for s in trainer.recorder.segments] == [f"train-5-{i}" for i in range(9)]
    for index, segment in enumerate(trainer.recorder.segments):
        prompt = trainer.train_dataset[index]["prompt_ids"]
        assert segment.input_ids[: len(prompt)].tolist() == prompt
        assert segment.weights[: len(prompt) - 1].sum() == 0, "nothing inside the prompt is supervised"
        assert segment.targets[segment.weights > 0][-1] == trainer.processing_class.eos_token_id


def test_3_accumulates_segments_in_a_window_buffer_that_carries_nothing(make_trainer):
    trainer = make_trainer(max_steps=2, **WINDOW)
    windows = record_batches(trainer)
    trainer.train()
    for number, (_, micro_steps, _) in enumerate(windows):
        mine = trainer.recorder.segments[9 * number : 9 * number + 9]
        batches = [batch for inputs in micro_steps for batch in inputs["micro_step"].batches]
        assert sum(b.tokens for b in batches if b.targets.numel()) == sum(s.encoded_len for s in mine)
    assert [e["packing/post_rollout_buffer"] for e in trainer.state.log_history if "loss" in e] == [0, 0]


def test_4_computes_packing_selections_that_see_the_whole_window(make_trainer):
    """A pack may hold segments of several micro-batches."""
    trainer = make_trainer(**WINDOW)
    trainer.train()
    lens = [s.encoded_len for s in trainer.recorder.segments]
    packs = trainer.last_window
    assert sorted(n for pack in packs for n in pack) == sorted(lens)
    assert any(len(pack) > 3 for pack in packs), "micro-batches have 3 samples; no pack crosses their border"
    assert sum(1 for pack in packs if pack) == -(-sum(lens) // 320)


@pytest.mark.parametrize("scope", [WINDOW, MICRO], ids=["window", "micro"])
def test_5_runs_exactly_gradient_accumulation_steps_micro_steps(make_trainer, scope):
    trainer = make_trainer(max_steps=2, gradient_accumulation_steps=3, **scope)
    seen = record_micro_steps(trainer)
    trainer.train()
    assert [s["step"] for s in seen] == [0, 0, 0, 1, 1, 1]
    assert [s["sync"] for s in seen] == [False, False, True] * 2
    assert trainer.state.global_step == 2
    if scope is WINDOW:
        assert [s["tokens"] for s in seen[2::3]] == [2, 2], "these windows leave the last pack empty: a dummy"
        assert all(s["backward"] for s in seen), "a dummy has a backward too"


@pytest.mark.parametrize("scope", [WINDOW, MICRO, {"packing": False}], ids=["window", "micro", "padded"])
def test_every_segment_is_trained_exactly_once_in_an_epoch(make_trainer, scope, caplog):
    """17 samples in micro-batches of 2, GA 4: the epoch ends with a window of 1 micro-batch of 1 sample."""
    dataset = DigitsDataset("train", 17, seed=5, max_digits=5)
    trainer = make_trainer(
        train=dataset,
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        packing_buffer=32,
        **scope,
    )
    seen = record_micro_steps(trainer)
    trainer.train()
    assert [s["step"] for s in seen] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert [s["sync"] for s in seen] == [False, False, False, True] * 2 + [True]
    trained = sum(s["supervised"] for s in seen)
    built = sum(len(s.indices["supervised"]) for s in trainer.recorder.segments)
    waiting = 0
    if scope is MICRO:
        left = trainer.schedule.buffer.state_dict()["segments"]
        waiting = sum(len(s.indices["supervised"]) for s in left)
        if left:
            assert f"{len(left)} segments" in caplog.text, "what was not trained is reported"
    assert len(trainer.recorder.segments) == 17
    assert trained + waiting == built


def test_an_iterable_that_ends_inside_a_window_still_trains_what_it_gave(make_trainer):
    class Stream(IterableDataset):
        def __iter__(self):
            source = DigitsDataset("train", 4, seed=5, max_digits=4)
            return iter(source[i] for i in range(4))

    trainer = make_trainer(train=Stream(), per_device_train_batch_size=2, gradient_accumulation_steps=3, **WINDOW)
    seen = record_micro_steps(trainer)
    trainer.train()
    assert [s["sync"] for s in seen] == [False, False, True]
    assert sum(s["supervised"] for s in seen) == sum(
        len(s.indices["supervised"]) for s in trainer.recorder.segments[:4]
    )


def test_two_epochs_of_an_iterable_and_max_steps(make_trainer):
    class Stream(IterableDataset):
        def __iter__(self):
            source = DigitsDataset("train", 6, seed=5, max_digits=3)
            return iter(source[i] for i in range(6))

    trainer = make_trainer(
        train=Stream(), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=3, **WINDOW
    )
    trainer.train()
    assert trainer.state.global_step == 3
    ids = [s.sample_id for s in trainer.recorder.segments]
    assert ids == [f"train-5-{i}" for i in range(6)] * 3


def test_evaluation_never_packs_or_touches_the_training_buffer(make_trainer):
    evaluation = DigitsDataset("eval", 7, seed=1, max_digits=4)
    trainer = make_trainer(evaluation=evaluation, per_device_eval_batch_size=3, global_max_length=130, **MICRO)
    trainer.train()
    before = trainer.schedule.buffer.state_dict()
    rng = torch.get_rng_state()
    built = len(trainer.recorder.segments)
    metrics = trainer.evaluate()
    after = trainer.schedule.buffer.state_dict()
    assert before["encoded_lens"], "the buffer is empty: the test would show nothing"
    assert [id(s) for s in before["segments"]] == [id(s) for s in after["segments"]]
    assert len(trainer.recorder.segments) == built, "evaluation builds no segment"
    assert torch.equal(rng, torch.get_rng_state())
    assert {"eval_rollout/f1", "eval_rollout/precision", "eval_rollout/recall", "eval_rollout/truncation"} <= set(
        metrics
    )


def test_the_log_line_has_every_metric(make_trainer):
    for scope in (WINDOW, MICRO):
        trainer = make_trainer(max_steps=2, **scope)
        trainer.train()
        lines = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(lines) == 2, "one line per optimizer step"
        expected = {
            "packing/post_rollout_fill",
            "packing/fill_non_empty",
            "packing/min_fill",
            "packing/non_empty_packs",
            "packing/lower_bound",
            "packing/segments",
            "packing/post_rollout_buffer",
            "rollout/f1",
            "rollout/precision",
            "rollout/recall",
            "rollout/valid_pred_rate",
            "rollout/truncation",
            "rollout/new_tokens_mean",
            "time/rollout_s",
            "time/build_s",
            "time/pack_s",
            "time/train_s",
        }
        for line in lines:
            assert expected <= set(line)
        fills = lines[1]
        tokens = sum(n for pack in trainer.last_window for n in pack)
        assert lines[1]["packing/post_rollout_fill"] == pytest.approx(tokens / (3 * 320))
        assert fills["packing/min_fill"] <= fills["packing/fill_non_empty"] <= 1


def test_metrics_of_several_steps_are_sums_over_sums(make_trainer):
    each = make_trainer(max_steps=2, **WINDOW)
    each.train()
    both = make_trainer(max_steps=2, logging_steps=2, **WINDOW)
    both.train()
    lines = [entry for entry in each.state.log_history if "loss" in entry]
    merged = next(entry for entry in both.state.log_history if "loss" in entry)
    mean = sum(line["packing/post_rollout_fill"] for line in lines) / 2
    assert merged["packing/post_rollout_fill"] == pytest.approx(mean)
    assert merged["packing/segments"] == 9
    assert merged["packing/min_fill"] == min(line["packing/min_fill"] for line in lines)


def test_an_oversized_segment_stops_before_any_forward(make_trainer):
    trainer = make_trainer(global_max_length=60, **WINDOW)
    seen = record_micro_steps(trainer)
    with pytest.raises(OversizedSegmentError, match="packing_length 60") as caught:
        trainer.train()
    assert "max_new_tokens" in str(caught.value)
    assert not seen


def test_an_infeasible_window_stops_before_any_forward_with_the_numbers(make_trainer):
    trainer = make_trainer(global_max_length=150, **WINDOW)
    seen = record_micro_steps(trainer)
    with pytest.raises(InfeasibleWindowError, match="150"):
        trainer.train()
    assert not seen


def test_a_full_carry_buffer_is_an_error_that_names_packing_buffer(make_trainer):
    trainer = make_trainer(packing_buffer=2, **MICRO)
    with pytest.raises(BufferOverflowError, match="packing_buffer"):
        trainer.train()


def test_underfilled_packs_are_reported(make_trainer, caplog):
    trainer = make_trainer(packing_min_fill_ratio=0.99, **MICRO)
    trainer.train()
    warnings = [m for m in caplog.messages if "post-rollout packing underfilled" in m]
    shares = [line["packing/underfilled"] for line in trainer.state.log_history if "packing/underfilled" in line]
    assert shares
    assert all(share == 1 for share in shares), "every pack is underfilled, and the log line says so"
    assert len(warnings) == 1 + (3 * len(shares) >= 10), "but only the 1st, 10th, 100th pack is a warning"


def test_a_window_without_anything_to_train_is_refused(make_trainer):
    from rollout_sft import Segment, Target

    class Unsupervised:
        def build(self, sample, rollout):
            ids = list(sample["prompt_ids"])
            return Target(segment=Segment.from_lists(ids, ids, [0.0] * len(ids)), counters={})

    trainer = make_trainer(builder=Unsupervised(), **WINDOW)
    with pytest.raises(ValueError, match="nothing to train"):
        trainer.train()


def test_runs_are_repeatable_with_sampled_rollouts(make_trainer):
    def run(seed):
        trainer = make_trainer(
            max_steps=2, seed=seed, decoding={"max_new_tokens": 16, "temperature": 1.0}, learning_rate=1e-2, **WINDOW
        )
        answers = []
        generate = trainer.generation.train.generate

        def spy(requests):
            rollouts = generate(requests)
            answers.extend(r.response_ids for r in rollouts)
            return rollouts

        trainer.generation.train.generate = spy
        trainer.train()
        return answers

    first = run(3)
    torch.manual_seed(99)
    assert first == run(3), "rollouts depend on the seed alone"
    assert first != run(4)
    assert len({tuple(answer) for answer in first}) > 9, "samples differ from each other and from step to step"


def test_no_two_rollouts_share_a_seed_in_any_step_micro_step_or_rank(make_trainer):
    class Silent:
        def __init__(self):
            self.counters, self.seeds = {}, []

        def generate(self, requests):
            self.seeds.extend(request.seed for request in requests)
            return [Rollout(response_ids=[], truncated=False) for _ in requests]

    def seeds_of(rank):
        backend, trainer = Silent(), make_trainer(**WINDOW)
        builder = WindowBuilder(
            trainer.args,
            schedule=trainer.schedule,
            target_builder=trainer.target_builder,
            backend=backend,
            limits=trainer.generation.train_limits,
            collate=trainer.window_builder.collate,
            rank=rank,
        )
        samples = [trainer.train_dataset[i] for i in range(18)]
        micro_batches = iter([MicroBatch(tuple(samples[i : i + 3])) for i in range(0, 18, 3)])
        for step in range(2):
            builder.build(micro_batches, 3, step)
        return backend.seeds

    first = seeds_of(0)
    assert first == seeds_of(0)
    assert len(set(first + seeds_of(1))) == 2 * len(first) == 36, "2 steps of 3 x 3 samples on each of 2 ranks"


def test_a_tokenizer_without_an_end_token_is_refused(make_trainer, tokenizer):
    import copy

    from rollout_sft import RolloutSFTTrainer

    trainer = make_trainer(**WINDOW)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="end token"):
        RolloutSFTTrainer(model=trainer.model, args=trainer.args, processing_class=endless)


def test_backend_sees_the_response_exactly_as_generated(make_trainer, tokenizer):
    """A rollout is never re-encoded: odd but valid token splits survive into the segment."""
    odd = [tokenizer.convert_tokens_to_ids(t) for t in ("<row>", "<row>")]

    class Odd:
        def __init__(self):
            self.counters = {}

        def generate(self, requests):
            return [Rollout(response_ids=odd, truncated=True) for _ in requests]

    trainer = make_trainer(backend=Odd(), **WINDOW)
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert lines[0]["rollout/truncation"] == 1.0
    assert lines[0]["rollout/new_tokens_mean"] == 2.0
    assert lines[0]["rollout/f1"] == 0.0


@pytest.mark.parametrize(("rollout_batch_size", "calls"), [(None, 1), (4, 3), (5, 3)])
def test_a_window_is_answered_in_one_batched_call_unless_it_is_bounded(make_trainer, rollout_batch_size, calls):
    shape = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    trainer = make_trainer(max_steps=1, rollout_batch_size=rollout_batch_size, **shape, **WINDOW)
    generate, widths = trainer.model.generate, []

    def spy(*, input_ids, **kwargs):
        widths.append(len(input_ids))
        return generate(input_ids=input_ids, **kwargs)

    trainer.model.generate = spy
    trainer.train()
    assert len(widths) == calls
    assert sum(widths) == 12
