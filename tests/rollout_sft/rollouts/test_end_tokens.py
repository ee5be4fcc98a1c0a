"""Which tokens end a rollout, and which one is trained: of every kind of chat template, with Hugging Face's backend."""

import pytest
from transformers import GenerationConfig, Qwen3ForCausalLM

from rollout_sft import RolloutRequest, RolloutSFTTrainer
from rollout_sft.rollouts.end_tokens import end_tokens_of, find_end_tokens
from rollout_sft.targets.loading import make_target_builder
from tests.rollout_sft.targets.tokenizers import MAKERS
from tests.tiny import tiny_arguments, tiny_config

TURN, PAGE = "<end_of_turn>", "<end_of_page>"
HEAD = "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
FOOT = "{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
PARTS = (
    "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}" + TURN + "{% endfor %}"
)  # of an image model


def chat(template, *, special=True):
    """Its `eos` is <eos>, as Gemma's is, and its turns end as the template says."""
    tokenizer = MAKERS["words"]()
    tokenizer.add_tokens([TURN, PAGE], special_tokens=special)
    tokenizer.chat_template = template
    return tokenizer


def ids(tokenizer, *names):
    return {tokenizer.convert_tokens_to_ids(name) for name in names}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("template", "trained"),
    [
        (HEAD + TURN + FOOT, TURN),
        (HEAD + TURN + "\n" + FOOT, TURN),
        (HEAD + "\n" + TURN + PAGE + FOOT, TURN),
        (HEAD + " {{ eos_token }}" + FOOT, "<eos>"),
        (HEAD + FOOT, "<eos>"),
        (HEAD + "\n" + FOOT, "<eos>"),
        (HEAD + "\n### End\n" + FOOT, "<eos>"),
        ("{{ raise_exception('only tools') }}", "<eos>"),
        ("a text without the answer", "<eos>"),
        (PARTS, TURN),
        (None, "<eos>"),
    ],
)
def test_the_end_that_is_trained_is_the_template_s(template, trained, special):
    tokenizer = chat(template, special=special)
    ends = find_end_tokens(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ends.trained) == trained
    assert ends.ids == ids(tokenizer, trained, "<eos>")


@pytest.mark.parametrize("named", [TURN, [TURN, PAGE], None])
def test_every_end_of_the_generation_config_counts(named, tmp_path):
    tokenizer = chat(HEAD + "<eos>" + FOOT)
    names = [named] if isinstance(named, str) else named or []
    config = tiny_arguments(tmp_path, end_tokens=[PAGE])
    given = list(ids(tokenizer, *names)) if isinstance(named, list) else tokenizer.convert_tokens_to_ids(named or "")
    found = find_end_tokens(
        tokenizer, config, generation_config=GenerationConfig(eos_token_id=given if named else None)
    )
    assert found.ids == ids(tokenizer, *names, PAGE, "<eos>")
    assert found.trained == tokenizer.eos_token_id


def test_an_end_that_is_no_token_is_refused(tmp_path):
    config = tiny_arguments(tmp_path, end_tokens=["<end_of_trun>"])
    with pytest.raises(ValueError, match=r"end_tokens holds '<end_of_trun>'.*nearest special token is '<end_of_turn>'"):
        find_end_tokens(chat(None), config)


def test_an_ordinary_token_that_the_model_alone_names_is_asked_for(tmp_path):
    tokenizer = chat(HEAD + "~" + FOOT)
    (tilde,) = ids(tokenizer, "~")
    model = Qwen3ForCausalLM(tiny_config(tokenizer))
    model.generation_config.eos_token_id = tilde
    with pytest.raises(ValueError, match=r"ends an assistant's turn with '~'.*end_tokens: \['~'\]"):
        end_tokens_of(model, tokenizer, tiny_arguments(tmp_path), vocab_size=len(tokenizer))
    config = tiny_arguments(tmp_path, end_tokens=["~"])
    assert end_tokens_of(model, tokenizer, config, vocab_size=len(tokenizer)).trained == tilde


def test_a_reference_that_holds_an_end_is_refused(tmp_path):
    tokenizer = chat(None)
    builder = make_target_builder(tokenizer, tiny_arguments(tmp_path, end_tokens=["]}]"]))
    sample = {"id": "a", "prompt_ids": [5], "objects": [{"desc": "cat", "bbox_2d": [1, 2, 3, 4]}]}
    with pytest.raises(ValueError, match=r"sample 'a': the answer to train holds ']}]'.*at which rollouts end"):
        builder.build_reference(sample)


class Always(Qwen3ForCausalLM):
    """Writes a few tokens of a list, and then one of its ends, which its prompt names."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        out = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        written = out.past_key_values.get_seq_length() >= 6
        for row in range(len(input_ids)):
            out.logits[row, -1] = -1.0
            out.logits[row, -1, self.end_of[row] if written else self.filler] = 1.0
        return out


def test_a_model_like_gemma_stops_and_is_trained_to_its_own_end(tmp_path):
    tokenizer = chat(HEAD + TURN + "\n" + FOOT)
    (turn,), (page,), (bracket,) = (ids(tokenizer, name) for name in (TURN, PAGE, "["))
    model = Always(tiny_config(tokenizer))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, page]
    model.filler, model.end_of = bracket, [turn, page, tokenizer.eos_token_id]
    samples = [{"id": str(i), "prompt_ids": [7, 8, 9], "objects": []} for i in range(3)]
    trainer = RolloutSFTTrainer(
        model, tiny_arguments(tmp_path, check_isolation=False), processing_class=tokenizer, train_dataset=samples
    )
    assert trainer.end_tokens.ids == {turn, page, tokenizer.eos_token_id}
    assert turn in model.generation_config.eos_token_id, "the saved model has to stop there"
    requests = [RolloutRequest(prompt_ids=[7, 8, 9], seed=i) for i in range(3)]
    rollouts = trainer.generation.train.generate(requests)
    assert [(r.response_ids, r.truncated) for r in rollouts] == [([bracket] * 3, False)] * 3
    for sample, rollout in zip(samples, rollouts, strict=True):
        segment = trainer.target_builder.build(sample, rollout).segment
        assert (segment.input_ids[-1], segment.targets[-2], segment.weights[-2]) == (turn, turn, 1)
