"""What would end a run later, or spoil it in silence, is found before the first step: by the check and by training."""

import copy
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2VLImageProcessor

from rollout_sft import check, findings, train
from rollout_sft.findings import embedding_rows, find_in_data, find_in_model, find_missing_end, learned_positions
from rollout_sft.lengths import Lengths
from tests.rollout_sft.test_train import CONFIG
from tests.tiny import tiny_arguments
from tests.tiny_images import CONFIGS, image_model

LENGTHS = {"prompts": 3, "longest": 20, "longest_id": "a", "references": [30, 50], "total": 3}


def messages(found, severity):
    return [one.message for one in found if one.severity == severity]


def unsavable_generation(model, tokenizer, args):
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.3
    return (
        r"generation_config cannot be saved, so the first checkpoint would end the run\. Mend generation_config\.json"
    )


def unsavable_config(model, tokenizer, args):
    model.config.odd = {1, 2}
    return "the model's configuration cannot be saved.* Mend config.json"


def unsavable_tokenizer(model, tokenizer, args):
    tokenizer.init_kwargs["odd"] = {1, 2}
    return "the tokenizer cannot be saved"


def unsavable_arguments(model, tokenizer, args):
    args.odd = lambda: None
    return "the training arguments cannot be saved"


@pytest.mark.parametrize("spoil", [unsavable_generation, unsavable_config, unsavable_tokenizer, unsavable_arguments])
def test_what_cannot_be_saved_is_found_before_the_first_save(make_model, tokenizer, tmp_path, spoil):
    model, tokenizer, args = make_model(), copy.deepcopy(tokenizer), tiny_arguments(tmp_path)
    assert list(find_in_model(model, tokenizer, None, args)) == []
    says = spoil(model, tokenizer, args)
    with pytest.raises(ValueError, match=says):
        findings.report_findings(find_in_model(model, tokenizer, None, args))


def test_an_image_processor_that_cannot_be_saved_is_found(make_model, tokenizer, tmp_path):
    processor = Qwen2VLImageProcessor()
    assert list(find_in_model(make_model(), tokenizer, processor, tiny_arguments(tmp_path))) == []
    processor.odd = {1, 2}
    [message] = messages(find_in_model(make_model(), tokenizer, processor, tiny_arguments(tmp_path)), "error")
    assert message.startswith("the image processor cannot be saved")


@pytest.mark.parametrize("command", [check.main, train.main])
def test_both_commands_refuse_a_generation_config_that_cannot_be_saved(
    make_model, tokenizer, tmp_path, capsys, command
):
    model = make_model(torch.float32)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text('{"do_sample": false, "temperature": 0.3, "top_p": 0.9}')
    start = CONFIG.index("  config: {model_type")
    text = CONFIG[:start] + f"  model_name_or_path: {tmp_path}/model\n" + CONFIG[CONFIG.index("data:") :]
    (tmp_path / "c.yaml").write_text(text.replace("OUT", f"{tmp_path}/out").replace("RESUME", "null"))
    with pytest.raises(SystemExit) as ended:
        command(["--config", str(tmp_path / "c.yaml")])
    assert ended.value.code == 2
    assert "error: the model's generation_config cannot be saved" in capsys.readouterr().err


def test_tokens_without_an_embedding_are_found(make_model, tokenizer, tmp_path):
    model, args = make_model(), tiny_arguments(tmp_path)
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["<one more>", "<and one>"])
    [warning] = find_in_model(model, larger, None, args)
    assert warning.severity == "warning"
    assert f"has 2 tokens for which the model's {len(tokenizer)} embeddings have no row, such as '<one more>'" in (
        warning.message
    )
    for name in ("pad_token", "eos_token"):
        special = copy.deepcopy(larger)
        setattr(special, name, "<one more>")
        [message] = messages(find_in_model(model, special, None, args), "error")
        assert f"token has the id {len(tokenizer)}, but the model has {len(tokenizer)} embeddings" in message
    held = Lengths(**LENGTHS, highest_id=len(tokenizer), highest_id_in="b")
    [message] = messages(find_in_data(args, held, model), "error")
    assert message.startswith(f"sample 'b' holds the token id {len(tokenizer)}, but the model has")
    assert messages(find_in_data(args, Lengths(**LENGTHS, highest_id=len(tokenizer) - 1), model), "error") == []


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_embeddings_of_an_image_model_are_those_of_its_text_half(family):
    model = image_model(family)
    assert embedding_rows(model) == model.config.get_text_config().vocab_size


def test_reference_answers_longer_than_max_new_tokens_are_counted(tmp_path):
    args = tiny_arguments(tmp_path, decoding={"max_new_tokens": 24}, eval_decoding={"max_new_tokens": 12})
    lengths = Lengths(**LENGTHS, responses=[10, 20, 24, 40], evaluates=True)
    long, longer = messages(find_in_data(args, lengths, None), "warning")
    assert long.startswith(
        "1 of 4 samples (25%) have a reference answer longer than decoding.max_new_tokens 24 (the longest has 40 "
        "tokens with its end)"
    )
    assert longer.startswith("3 of 4 samples (75%) have a reference answer longer than eval_decoding.max_new_tokens 12")
    alone = tiny_arguments(tmp_path, reference_fraction=1.0)
    assert messages(find_in_data(alone, Lengths(**LENGTHS, responses=[40]), None), "warning") == []


def test_a_builder_that_never_trains_the_end_is_found():
    [finding] = find_missing_end(Lengths(**LENGTHS))
    assert finding.message.startswith("none of the 2 reference answers trains the end token")
    assert list(find_missing_end(Lengths(**LENGTHS, ends=1))) == []


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "gptj", "gpt_neo", "biogpt", "codegen", "gpt_bigcode"])
def test_a_table_of_positions_is_found(model_type):
    small = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    extra = {"gpt_neo": {"attention_types": [[["global"], 2]]}, "opt": {"word_embed_proj_dim": 32, "ffn_dim": 32}}
    extra |= {name: {"rotary_dim": 4} for name in ("gptj", "codegen")}
    config = AutoConfig.for_model(model_type, **small, max_position_embeddings=40, **extra.get(model_type, {}))
    model = AutoModelForCausalLM.from_config(config)
    assert learned_positions(model) == 40
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.ones(1, 41, dtype=torch.int64), position_ids=torch.arange(41)[None])


def test_samples_beyond_the_positions_are_found(make_model, tmp_path):
    small = {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2}
    assert learned_positions(make_model()) is None, "rotary positions have no table"
    for positions, prompt, severity in ((25, 20, "error"), (60, 40, "problem"), (80, 40, None)):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **small, n_positions=positions))
        args = tiny_arguments(tmp_path, decoding={"max_new_tokens": 24})
        found = list(find_in_data(args, Lengths(**{**LENGTHS, "longest": prompt}), model))
        about = [one.severity for one in found if "position" in one.message]
        assert about[:1] == ([severity] if severity else []), positions


def test_a_vllm_that_holds_no_rollout_of_the_longest_prompt_is_found(make_model, tmp_path):
    args = tiny_arguments(tmp_path, rollout_backend="vllm", vllm={"max_model_len": 43}, decoding={"max_new_tokens": 24})
    [message] = messages(find_in_data(args, Lengths(**LENGTHS), make_model()), "error")
    assert "come to more than the 43 tokens of rollout_matching.vllm.max_model_len" in message
    args = tiny_arguments(tmp_path, rollout_backend="vllm", vllm={"max_model_len": 44}, decoding={"max_new_tokens": 24})
    assert messages(find_in_data(args, Lengths(**LENGTHS), make_model()), "error") == []


def moved(make_trainer, make_model, dtype, **settings):
    """Counts the weights that four steps at 1e-6 move."""
    model = make_model(dtype, initializer_range=0.02)
    before = [weight.detach().clone() for weight in model.parameters()]
    trainer = make_trainer(model=model, max_steps=4, learning_rate=1e-6, lr_scheduler_type="constant", **settings)
    trainer.train()
    after = list(model.parameters())
    changed = sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    return changed, sum(weight.numel() for weight in before)


def test_bfloat16_weights_alone_lose_the_updates_and_are_named(make_trainer, make_model, caplog):
    with caplog.at_level(logging.WARNING, logger="rollout_sft"):
        alone, weights = moved(make_trainer, make_model, torch.bfloat16)
    said = [record.getMessage() for record in caplog.records if "rounds to nothing" in record.getMessage()]
    assert len(said) == 1
    assert "rounds to nothing in 9" in said[0]  # 9x %
    assert "model.dtype: float32" in said[0]
    caplog.clear()
    kept, _ = moved(make_trainer, make_model, torch.float32, bf16=True)
    assert [record for record in caplog.records if "rounds to nothing" in record.getMessage()] == []
    assert weights == 21728
    assert alone < 0.05 * weights, "docs/questions.md: 408"
    assert kept > 0.9 * weights, "docs/questions.md: 21,503"


def test_the_share_that_rounds_away_is_what_an_update_leaves_unmoved():
    for dtype, rate in ((torch.bfloat16, 1e-4), (torch.float16, 1e-5), (torch.bfloat16, 1.0), (torch.float32, 1e-6)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(64, 64, bias=False).to(dtype)
        share, _ = findings.rounded_away(layer, rate)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=0.0)
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.ones_like(before)
        optimizer.step()
        unmoved = (layer.weight == before).double().mean().item()
        assert share == pytest.approx(unmoved if dtype != torch.float32 else 0.0, abs=0.01)


def test_frozen_weights_and_a_rate_of_nothing_round_nothing_away(make_model):
    model = make_model(torch.bfloat16)
    assert findings.rounded_away(model, 0.0)[0] == 0.0
    for weight in model.parameters():
        weight.requires_grad_(False)
    assert findings.rounded_away(model, 1e-9)[0] == 0.0
