"""`generate` stops rows whose responses end early; the responses are those of the rule applied afterwards."""

import pytest
import torch

from rollout_sft import RolloutRequest
from rollout_sft.config.decoding import Decoding
from rollout_sft.rollouts.endings import CHECK_EVERY, Endings
from rollout_sft.rollouts.hf import HFBackend
from tests.rollout_sft.rollouts.test_endings import Builder, Reader

EOS, PAD = 1, 0
LONGEST = 200
REQUESTS = [RolloutRequest(prompt_ids=list(p), seed=i) for i, p in enumerate([[5, 6], [9], [11, 12, 13], [20], [4, 4]])]


class Rare(Builder):
    """Nothing can follow some tokens."""

    def response_reader(self):
        reader = Reader()
        reader.read = lambda token: setattr(reader, "over", reader.over or token % 19 == 0)
        return reader


@pytest.fixture
def model(make_model):
    return make_model(torch.float32)


def generate(model, endings, *, batch=8, pad=PAD, **decoding):
    knobs = {"max_new_tokens": LONGEST, **decoding}
    backend = HFBackend(
        lambda: model, Decoding(**knobs), eos_token_ids=[EOS], pad_token_id=pad, batch_size=batch, endings=endings
    )
    forwards = []
    hook = model.register_forward_hook(lambda *_: forwards.append(1))
    rollouts = backend.generate(REQUESTS)
    hook.remove()
    return rollouts, len(forwards)


@pytest.mark.parametrize(
    ("builder", "temperature", "batch"), [(Builder(), 0.0, 1), (Rare(), 1.0, 8)], ids=["loops", "closed"]
)
def test_a_batch_stops_early_and_gives_what_the_rule_leaves(model, builder, temperature, batch):
    endings = Endings(builder, looping=True)
    whole, steps = generate(model, None, temperature=temperature, batch=batch)
    cut, fewer = generate(model, endings, temperature=temperature, batch=batch)
    assert cut == [endings.cut(rollout) for rollout in whole]
    assert any(rollout.ended for rollout in cut)
    lengths = [len(rollout.response_ids) for rollout in cut]
    assert fewer <= (sum(lengths) + len(lengths) * CHECK_EVERY if batch == 1 else max(lengths) + CHECK_EVERY)
    assert fewer < steps, "nothing was saved: the test would show nothing"


@pytest.mark.parametrize("pad", [PAD, EOS])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_rows_end_on_their_own(model, batch, pad):
    endings = Endings(Rare(), looping=True)
    together, _ = generate(model, endings, temperature=1.0)
    alone, _ = generate(model, endings, temperature=1.0, batch=batch, pad=pad)
    assert alone == together
    assert len({len(rollout.response_ids) for rollout in together}) > 2


def test_an_end_token_in_the_middle_of_a_look_ends_a_row_by_itself(model):
    """What stands behind it is padding, which would read as a loop or as more text."""
    (first, *_), _ = generate(model, None, max_new_tokens=40)
    end = first.response_ids[20]
    stop = first.response_ids.index(end)
    backend = HFBackend(
        lambda: model,
        Decoding(max_new_tokens=LONGEST),
        eos_token_ids=[end],
        pad_token_id=PAD,
        batch_size=8,
        endings=Endings(Builder(), looping=True),
    )
    rollout = backend.generate(REQUESTS)[0]
    assert (rollout.response_ids, rollout.truncated, rollout.ended) == (first.response_ids[:stop], False, False)
