"""A real engine in this process against Hugging Face's `generate`, token for token."""

import copy
import random

import numpy as np
import pytest
import torch

from rollout_sft.config.decoding import Decoding
from rollout_sft.rollouts.endings import Endings
from rollout_sft.rollouts.live_weights import StaleRolloutError
from rollout_sft.rollouts.vllm.backend import VLLMBackend
from rollout_sft.rollouts.vllm.colocated import ColocatedEngine
from rollout_sft.rollouts.vllm.worker import RolloutWorker
from tests.rollout_sft.rollouts.test_endings import Builder
from tests.rollout_sft.rollouts.test_hf_endings import Rare
from tests.vllm.conftest import (
    EOS,
    LONG,
    LONGEST,
    PROMPTS,
    SHORT,
    Live,
    by_hf,
    colocate_config,
    compare_ends,
    compare_every_window,
    ends_that_only_the_model_names,
    make_model,
    make_trainer,
    perturb,
    requests,
)


def states():
    return (
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
        torch.get_rng_state().tolist(),
        torch.set_num_threads,
        torch.get_num_threads(),
    )


@pytest.fixture(scope="module", params=["tied", "untied"])
def engine(request):
    """An engine with the weights of a live model; `started` says what starting it did to the generators."""
    # With this seed no greedy response of 24 tokens holds an end token, and some of 220 repeat themselves.
    live = Live(make_model(tied=request.param == "tied", seed=2))
    live.tied = request.param == "tied"
    live.initial = copy.deepcopy(live.model.state_dict())
    live.engine = ColocatedEngine(colocate_config(), longest=LONGEST, dtype="float32")
    before = states()
    live.engine.load(live.weights)
    live.started = [a == b for a, b in zip(before, states(), strict=True)]
    yield live
    live.engine.close()


@pytest.fixture
def colocated(engine):
    """The engine and its live model, whose weights are as at the start whatever other tests made of them."""
    engine.model.load_state_dict(engine.initial)
    engine.weights.changed()
    torch.manual_seed(0)
    return engine


@pytest.fixture
def backend(colocated):
    def make(*, ends=(EOS,), endings=None, **decoding):
        decoding = Decoding(**{"max_new_tokens": 24, **decoding})
        made = VLLMBackend(colocated.engine, colocated.weights, decoding, eos_token_ids=ends, endings=endings)
        made.sync()
        return made

    return make


def test_greedy_equals_hugging_face_before_and_after_every_sync(colocated, backend):
    assert backend().generate(requests()) == by_hf(colocated.model)
    for _ in range(3):
        before = by_hf(colocated.model)
        colocated.change()
        expected = by_hf(colocated.model)
        assert all(a != b for a, b in zip(before, expected, strict=True)), "the weights hardly changed"
        assert backend().generate(requests()) == expected
        assert backend().generate(requests()) == expected, "the second time from the prefix cache"


@pytest.mark.parametrize(("builder", "temperature"), [(Rare(), 1.0), (Builder(), 0.0)])
def test_responses_end_early_as_with_hugging_face(colocated, backend, builder, temperature):
    endings, knobs = Endings(builder, looping=True), {"max_new_tokens": 220, "temperature": temperature}
    for _ in range(2):  # the second time with other weights: nothing of the aborted requests is left in the caches
        made = backend(endings=endings, **knobs)
        answers = made.generate(requests())
        assert answers == [endings.cut(rollout) for rollout in by_hf(colocated.model, **knobs)]
        ended = [i for i, rollout in enumerate(answers) if rollout.ended]
        # Of a response that ended early, 16 tokens at most were generated too much.
        cost = sum(
            len(r.response_ids) + 1 if i not in ended else len(r.response_ids) + 16 for i, r in enumerate(answers)
        )
        assert sum(len(r.response_ids) for r in answers) <= made.counters["rollout/new_tokens_per_s"][0] <= cost
        colocated.change()
    assert ended, "nothing ended early: the test would show nothing"


def test_without_resetting_the_prefix_cache_long_prompts_would_be_stale(colocated, backend, monkeypatch):
    backend().generate(requests())
    monkeypatch.setattr(ColocatedEngine, "_forget", lambda self: None)
    colocated.change()
    answers, expected = backend().generate(requests()), by_hf(colocated.model)
    assert answers[: len(SHORT)] == expected[: len(SHORT)]
    assert all(a != b for a, b in zip(answers[len(SHORT) :], expected[len(SHORT) :], strict=True))
    monkeypatch.undo()
    colocated.change()
    assert backend().generate(requests()) == by_hf(colocated.model)


def test_without_repacking_a_tied_head_would_be_stale(colocated, backend, monkeypatch):
    monkeypatch.setattr(RolloutWorker, "rollout_repack_head", lambda self: None)
    colocated.change()
    assert (backend().generate(requests()) == by_hf(colocated.model)) is (not colocated.tied)
    monkeypatch.undo()
    colocated.change()
    assert backend().generate(requests()) == by_hf(colocated.model)


def test_a_sync_copies_the_weights(colocated, backend):
    expected = by_hf(colocated.model)
    made = backend()
    kept = {name: p.detach().clone() for name, p in colocated.model.named_parameters()}
    perturb(colocated.model)
    assert made.generate(requests()) == expected, "the engine shares memory with the trainer"
    with torch.no_grad():
        for name, parameter in colocated.model.named_parameters():
            parameter.copy_(kept[name])


def test_changed_weights_without_a_sync_are_refused(colocated, backend):
    made = backend()
    colocated.weights.changed()
    with pytest.raises(StaleRolloutError, match=r"has weights of version \d+, but the live ones are of version \d+"):
        made.generate(requests())
    made.sync()
    made.generate(requests())


def test_samples_depend_on_their_seed_alone(colocated, backend):
    made = backend(temperature=1.0, top_p=0.95, top_k=40)
    together = made.generate(requests())
    assert made.generate(requests()[::-1])[::-1] == together
    assert [made.generate([request])[0] for request in requests()] == together
    same = [requests()[0], requests([PROMPTS[0]] * 2)[1]]
    assert made.generate(same)[0] != made.generate(same)[1], "another seed, another sample"


def test_an_end_token_ends_the_response_and_is_not_part_of_it(colocated, backend):
    whole = backend().generate(requests())
    assert all(rollout.truncated and len(rollout.response_ids) == 24 for rollout in whole)
    end = whole[0].response_ids[2]
    assert backend(ends=[end]).generate(requests()) == by_hf(colocated.model, ends=[end])
    assert not backend(ends=[end]).generate(requests())[0].truncated


def test_every_end_that_only_the_generation_config_names_ends_a_response(colocated, backend):
    ends = ends_that_only_the_model_names(colocated.model)
    compare_ends(lambda some: backend(ends=some), colocated.model, ends)


def test_other_knobs_mean_the_same(colocated, backend):
    assert backend(repetition_penalty=1.5).generate(requests()) == by_hf(colocated.model, repetition_penalty=1.5)
    knobs = {"temperature": 0.7, "top_k": 1}
    assert backend(**knobs).generate(requests()) == by_hf(colocated.model, **knobs)


def test_starting_and_generating_leave_generators_and_threads_alone(colocated, backend):
    assert colocated.started == [True] * 5
    made, before = backend(temperature=1.0), states()
    colocated.change()
    before = states()
    made.sync()
    made.generate(requests())
    assert [a == b for a, b in zip(before, states(), strict=True)] == [True] * 5


def test_what_the_engine_would_cut_is_refused(colocated, backend):
    made = backend(max_new_tokens=700)
    with pytest.raises(ValueError, match=r"request 3 has a prompt of 340 tokens and may get 700 more, .* holds 1024"):
        made.generate(requests())
    with pytest.raises(ValueError, match="request 0 has an empty prompt"):
        made.generate(requests([[]]))


def test_counters_are_those_of_the_requests(colocated, backend):
    made = backend()
    for prompts in (PROMPTS, LONG):
        made.generate(requests(prompts))
        assert made.counters["rollout/prefill_tokens"] == (sum(map(len, prompts)), 1.0)
        assert made.counters["rollout/new_tokens_per_s"][0] == 24 * len(prompts)
        assert made.counters["rollout/engine_retries"] == (0.0, 1.0)


def test_a_trained_adapter_is_merged_into_the_engine(colocated):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = Live(peft.get_peft_model(make_model(tied=colocated.tied, seed=3), config))
    plain = by_hf(make_model(tied=colocated.tied, seed=3))
    made = VLLMBackend(colocated.engine, adapted.weights, Decoding(max_new_tokens=24), eos_token_ids=[EOS])
    colocated.engine.version = None  # the engine's versions are those of another model
    made.sync()
    expected = by_hf(adapted.model)
    assert expected != plain
    assert made.generate(requests()) == expected
    colocated.engine.version = None


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_window_is_answered_with_the_weights_of_its_step(tied, tmp_path):
    trainer = make_trainer(tmp_path, model=make_model(tied=tied))
    loads = []
    engine = trainer.generation._engine
    load = engine.load
    engine.load = lambda weights: (loads.append(weights.version), load(weights))
    asleep = []
    generate, sleep = engine.generate, engine.sleep
    engine.generate = lambda *a: (asleep.append(False), generate(*a))[1]
    engine.sleep = lambda: (asleep.append(True), sleep())
    compared = compare_every_window(trainer)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert compared == [True] * 3
    assert asleep == [False, True] * 5, "asleep whenever the model is trained"
    assert loads == [0, 1, 2, 3], "once per optimizer step, and the evaluation before the first uses the same"
    samples = [{"id": str(i), "prompt_ids": list(p)} for i, p in enumerate(PROMPTS)]
    trainer.generation.weights.changed()
    assert trainer.roll_out(samples) == by_hf(trainer.model, max_new_tokens=12)
    assert len(loads) == 5, "roll_out synchronises by itself"
    for line in trainer.state.log_history:
        if "loss" in line:
            assert line["time/weight_sync_s"] > 0
            assert line["rollout/prefill_tokens"] > 100
            assert line["rollout/new_tokens_per_s"] > 0
            assert line["rollout/engine_retries"] == 0
    trainer.generation.close()


def test_training_on_references_starts_no_engine_before_the_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, reference_fraction=1.0)
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.generation._engine.version is None
    trainer.evaluate()
    assert trainer.generation._engine.version == 3
    trainer.generation.close()
