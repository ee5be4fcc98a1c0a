"""The Hugging Face backend against a hand-written decoding loop on the same model."""

import pytest
import torch
from transformers import GenerationConfig

from rollout_sft import RolloutRequest
from rollout_sft.config.decoding import Decoding
from rollout_sft.rollouts.hf import HFBackend

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16], [20, 21]]
EOS, PAD = 1, 0


def backend(model, batch_size=8, **decoding):
    return HFBackend(lambda: model, Decoding(**decoding), eos_token_ids=[EOS], pad_token_id=PAD, batch_size=batch_size)


def requests(prompts=PROMPTS):
    return [RolloutRequest(prompt_ids=list(p), seed=100 + i) for i, p in enumerate(prompts)]


@torch.no_grad()
def greedy(model, prompt, steps):
    ids = list(prompt)
    for _ in range(steps):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == EOS:
            return ids[len(prompt) :], False
        ids.append(token)
    return ids[len(prompt) :], True


@pytest.fixture
def model(make_model):
    return make_model(torch.float32)


def test_greedy_equals_a_hand_written_loop_without_padding_or_cache(model):
    out = backend(model, max_new_tokens=20).generate(requests())
    assert [(r.response_ids, r.truncated) for r in out] == [greedy(model, p, 20) for p in PROMPTS]


def test_an_end_token_ends_the_response_and_is_not_part_of_it(model):
    first = greedy(model, PROMPTS[0], 5)[0]
    ending = HFBackend(
        lambda: model, Decoding(max_new_tokens=5), eos_token_ids=[first[2]], pad_token_id=PAD, batch_size=4
    )
    rollout = ending.generate(requests())[0]
    stop = first.index(first[2])
    assert rollout.response_ids == first[:stop]
    assert not rollout.truncated


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_samples_do_not_depend_on_the_batch(model, batch_size):
    knobs = {"max_new_tokens": 16, "temperature": 0.9, "top_p": 0.95, "top_k": 40}
    together = backend(model, 4, **knobs).generate(requests())
    assert [r.response_ids for r in backend(model, batch_size, **knobs).generate(requests())] == [
        r.response_ids for r in together
    ]
    shuffled = backend(model, batch_size, **knobs).generate(requests()[::-1])[::-1]
    assert [r.response_ids for r in shuffled] == [r.response_ids for r in together]


def test_sampling_follows_the_model_and_the_knobs(model):
    """First tokens of 2000 requests with other seeds: frequencies within 5 standard errors of the probabilities."""
    n, temperature, top_k = 2000, 2.0, 5
    asked = [RolloutRequest(prompt_ids=[5, 6, 7], seed=i) for i in range(n)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1] / temperature
    top = logits.topk(top_k)
    probabilities = dict(zip(top.indices.tolist(), torch.softmax(top.values, -1).tolist(), strict=True))
    out = backend(model, 500, max_new_tokens=1, temperature=temperature, top_k=top_k).generate(asked)
    counts = {}
    for rollout in out:
        token = rollout.response_ids[0] if rollout.response_ids else EOS
        counts[token] = counts.get(token, 0) + 1
    assert set(counts) <= set(probabilities)
    for token, p in probabilities.items():
        assert abs(counts.get(token, 0) - n * p) < 5 * (n * p * (1 - p)) ** 0.5 + 1


def test_repetition_penalty_ignores_the_padding_on_the_left(model):
    knobs = {"max_new_tokens": 12, "repetition_penalty": 1.5}
    alone = [backend(model, 1, **knobs).generate([r])[0].response_ids for r in requests()]
    assert [r.response_ids for r in backend(model, 4, **knobs).generate(requests())] == alone
    assert alone != [greedy(model, p, 12)[0] for p in PROMPTS]


def test_defaults_of_the_model_do_not_leak_into_decoding(model):
    plain = [r.response_ids for r in backend(model, max_new_tokens=12).generate(requests())]
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=5.0, no_repeat_ngram_size=1, max_length=3
    )
    mine = model.generation_config
    assert [r.response_ids for r in backend(model, max_new_tokens=12).generate(requests())] == plain
    assert model.generation_config is mine


def test_the_model_and_the_generators_are_left_as_they_were(model):
    model.train()
    model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    backend(model, max_new_tokens=4, temperature=1.0).generate(requests())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_the_model_is_restored_when_generation_fails(model):
    model.train()
    with pytest.raises(IndexError):
        backend(model, max_new_tokens=4).generate([RolloutRequest(prompt_ids=[10**6], seed=0)])
    assert model.training


def test_dropout_is_off_while_rolling_out(make_model):
    model = make_model(torch.float32, attention_dropout=0.9).train()
    assert [(r.response_ids, r.truncated) for r in backend(model, max_new_tokens=8).generate(requests())] == [
        greedy(model.eval(), p, 8) for p in PROMPTS
    ]


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="request 1 has an empty prompt"):
        backend(model).generate([RolloutRequest(prompt_ids=[4], seed=0), RolloutRequest(prompt_ids=[], seed=0)])


@pytest.mark.parametrize(
    ("knob", "value"), [("max_new_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("top_k", -1), ("min_p", 2.0)]
)
def test_bad_decoding_knobs_are_named(knob, value):
    with pytest.raises(ValueError, match=rf"rollout_matching\.decoding\.{knob} is {value}; it takes"):
        Decoding(**{knob: value})


def test_nothing_is_asked_of_the_model_where_nothing_is_generated(model, monkeypatch):
    made = backend(model, batch_size=2, max_new_tokens=7)
    monkeypatch.setattr(model, "eval", lambda: pytest.fail("the modes of all modules were changed"))
    assert made.generate([]) == []
    assert made.counters == {"rollout/padding": (0.0, 0.0)}


def test_the_padding_of_a_call_is_counted(model):
    made = backend(model, batch_size=2, max_new_tokens=7)
    rollouts = made.generate(requests())
    real = sum(map(len, PROMPTS)) + sum(len(r.response_ids) for r in rollouts)
    responses = [len(r.response_ids) for r in rollouts]
    # Sorted by length: prompts 1 and 3 together, then 0 and 2.
    computed = 2 * (2 + max(responses[1], responses[3])) + 2 * (6 + max(responses[0], responses[2]))
    assert made.counters == {"rollout/padding": (computed - real, computed)}
    assert computed > real
