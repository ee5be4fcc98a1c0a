"""Rows of a batch get the responses that they get alone, with images and without; none holds a media token."""

import pytest
import torch

from rollout_sft import RolloutRequest
from rollout_sft.config.decoding import Decoding
from rollout_sft.inputs.choose import IMAGE_MODELS, make_adapter
from rollout_sft.rollouts.base import Rollout
from rollout_sft.rollouts.check_answers import AnswerError, AnswerLimits, checked
from rollout_sft.rollouts.hf import HFBackend
from tests.tiny_images import (
    END,
    IMAGE,
    START,
    image_config,
    image_model,
    image_processor,
    image_tokenizer,
    picture,
)

SEEN = (START, IMAGE, END)
PROMPTS = [
    ([20, *SEEN, 21], [(16, 24)]),
    ([22, 23], []),
    ([24, *SEEN, 25, *SEEN, 26, 27], [(40, 8), (9, 30)]),
    ([28, 29, 30, 31, 32, 33, 34], []),
    ([35, *SEEN], [(61, 45)]),
]


@pytest.fixture(scope="module", params=IMAGE_MODELS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return image_model(family, torch.float32).eval()


@pytest.fixture(scope="module")
def inputs(family):
    return make_adapter(image_config(family), image_tokenizer(), image_processor(family))


@pytest.fixture
def requests(inputs):
    made = []
    for i, (ids, sizes) in enumerate(PROMPTS):
        images = tuple(picture(*size, seed=10 * i + n) for n, size in enumerate(sizes))
        made.append(RolloutRequest(prompt_ids=inputs.expand(ids, images), seed=100 + i, images=images))
    return made


@pytest.fixture
def backend(model, inputs):
    def make(batch_size, *, max_new_tokens=10, **decoding):
        decoding = Decoding(max_new_tokens=max_new_tokens, **decoding)
        return HFBackend(
            lambda: model, decoding, eos_token_ids=[1], pad_token_id=0, batch_size=batch_size, inputs=inputs
        )

    return make


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.95, "top_k": 30}], ids=["greedy", "sampled"])
def test_a_row_with_images_does_not_depend_on_its_batch(backend, requests, sampling):
    alone = backend(1, **sampling).generate(requests)
    assert backend(5, **sampling).generate(requests) == alone
    assert backend(3, **sampling).generate(requests[::-1])[::-1] == alone
    assert len({tuple(rollout.response_ids) for rollout in alone}) == len(alone)


@torch.no_grad()
def test_greedy_follows_the_model_s_own_plain_forward(backend, requests, model, inputs):
    """Without a cache, without padding: every token is the likeliest of one forward over all before it."""
    for request, rollout in zip(requests, backend(5).generate(requests), strict=True):
        ids = [*request.prompt_ids, *rollout.response_ids]
        row = torch.tensor(ids)
        media = {**inputs.padded([row], width=len(ids), left=False), **inputs.media(request.images)}
        logits = model(input_ids=row[None], attention_mask=torch.ones_like(row)[None], **media).logits[0]
        logits[:, sorted(inputs.media_token_ids)] = -torch.inf
        likeliest = logits[len(request.prompt_ids) - 1 : -1].argmax(-1)
        assert rollout.response_ids == likeliest.tolist()


def test_the_pixels_of_a_row_change_its_response(backend, requests):
    before = backend(5).generate(requests)
    request = requests[0]
    requests[0] = RolloutRequest(prompt_ids=request.prompt_ids, seed=request.seed, images=(picture(16, 24, seed=99),))
    after = backend(5).generate(requests)
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, False, False, False, False]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}], ids=["greedy", "sampled"])
def test_media_tokens_are_never_generated(backend, requests, model, inputs, sampling):
    """Even where the model would write nothing else."""
    head = model.get_output_embeddings()
    towards = torch.zeros(head.out_features)
    towards[sorted(inputs.media_token_ids)] = 1e4
    hook = head.register_forward_hook(lambda module, given, logits: logits + towards)
    try:
        rollouts = backend(5, **sampling).generate(requests)
    finally:
        hook.remove()
    assert IMAGE in inputs.media_token_ids
    assert all(inputs.media_token_ids.isdisjoint(rollout.response_ids) for rollout in rollouts)
    assert any(rollout.response_ids for rollout in rollouts)


def test_a_media_token_in_an_answer_is_refused():
    limits = AnswerLimits(vocab_size=64, max_new_tokens=9, end_ids=frozenset([1]), media_token_ids=frozenset([2, 3]))
    asked = [RolloutRequest(prompt_ids=[5], seed=0)]
    answer = [Rollout(response_ids=[7, 3, 8], truncated=True)]
    with pytest.raises(AnswerError, match="position 1 of 3 of the response holds the token 3, which stands for an im"):
        checked(answer, asked, limits)
