"""`rollout_sft.check`: one page before anything trains, and status 2 for what would end the run."""

import os
import re
import sys
from importlib.util import find_spec

import pytest

from rollout_sft import check, parts
from tests.rollout_sft.test_train import CONFIG

SERVER = "rollout_backend: vllm\n  vllm: {mode: server, base_url: 'http://127.0.0.1:9'}"


@pytest.fixture
def run(tmp_path, capsys):
    def run(**replacements):
        text = CONFIG.replace("OUT", str(tmp_path / "out")).replace("RESUME", "null")
        for old, new in replacements.values():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "config.yaml").write_text(text)
        status = 0
        try:
            check.main(["--config", str(tmp_path / "config.yaml")])
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        assert not (tmp_path / "out").exists(), "a check writes nothing"
        return status, " ".join(printed.out.split()), printed.err

    return run


def test_a_good_configuration_is_one_page_per_stage(run):
    status, page, _ = run()
    assert status == 0
    first, second = page[: page.index("stage 2 of 2: rollouts")], page[page.index("stage 2 of 2: rollouts") :]
    for fact in (
        "model Qwen3ForCausalLM, 12,416 parameters",
        "attention rollout_varlen",
        "leak probe passed",
        "longest prompt 25 tokens, sample 'train-42-2'; global_max_length is 768",
        "reference answers segments of 42 tokens on average, the longest 63 (from 24 samples)",
        "carry buffer none",
        "batch size per_device_train_batch_size 15 would fill the packs to 82%",
    ):
        assert fact in first, fact
    assert "with max_new_tokens 8 up to 33; global_max_length is 768" in second
    assert second.endswith("No problem found. Nothing was trained.")


def test_a_reader_that_leaves_ends_the_check_quietly(run, monkeypatch):
    monkeypatch.setattr(check, "_check_stage", lambda *_, **__: [])  # its pages are rich's to print
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:  # closing it writes what is left, as the end of a process does
        monkeypatch.setattr(sys, "stdout", output)
        assert run()[0] == 1
        monkeypatch.undo()


def test_what_would_end_the_run_is_a_problem(run):
    cap, rollouts = ("global_max_length: 768", "global_max_length: 62"), ("max_new_tokens: 8", "max_new_tokens: 40")
    status, _, problems = run(cap=cap, rollouts=rollouts)
    assert status == 2
    assert "problem: stage format: 6 of 24 samples have a reference answer whose segment is longer than" in problems
    assert (
        "problem: stage rollouts: sample 'train-42-2': its prompt and max_new_tokens may come to 65 tokens, more than "
        "global_max_length 62; such a segment ends the run. Raise global_max_length, lower max_new_tokens, or set "
        "rollout_matching.on_oversized: skip."
    ) in problems
    skip = ("scope: window", "scope: window\n  on_oversized: skip")
    assert run(cap=cap, rollouts=rollouts, skip=skip)[0] == 0


def test_a_shape_that_transformers_refuses_ends_with_the_message_alone(run):
    llama = [("model_type: qwen3", "model_type: llama"), ("hidden_size: 32", "hidden_size: 33")]
    status, _, printed = run(**{old: (old, new) for old, new in llama})
    assert status == 2
    assert printed.startswith("error: model.config is {'model_type': 'llama', ")
    assert "The hidden size (33) is not a multiple of the number of attention heads (2)" in printed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flash-attention-2", "is 'flash-attention-2', which cannot be used: did you mean flash_attention_2?"),
        pytest.param(
            "flash_attention_2",
            "is 'flash_attention_2', which cannot be used: the package flash-attn is missing (with the package "
            "kernels, transformers would download kernels-community/flash-attn2, version ",
            marks=pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed"),
        ),
    ],
)
def test_an_attention_that_cannot_be_used_is_answered_with_what_to_do(run, name, message):
    status, _, printed = run(attention=("model:", f"model:\n  attn_implementation: {name}"))
    assert status == 2
    assert printed.startswith(f"error: model.attn_implementation {message}")


@pytest.mark.parametrize(("backend", "warned"), [("rollout_backend: hf", True), (SERVER, False)])
def test_waves_that_do_nothing_are_explained_with_the_key(run, caplog, backend, warned):
    status, _, problems = run(scope=("scope: window", f"scope: window\n  rollout_waves: 99\n  {backend}"))
    assert status == 0, problems
    said = [record.getMessage() for record in caplog.records if "rollout_waves" in record.getMessage()]
    assert len(said) == warned
    assert all("is 99, but rollout_backend hf hands out all rollouts" in message for message in said)


def test_scope_micro_says_what_the_carry_buffer_may_take(run):
    status, page, _ = run(scope=("scope: window", "scope: micro"))
    assert status == 0
    assert "carry buffer at most 512 segments of 63 tokens" not in page
    assert "carry buffer at most 512 segments of 33 tokens: 0.3 MiB a rank, also in every checkpoint" in page


def test_a_schedule_that_cannot_be_made_is_found_in_any_stage(run):
    wrong = ("{learning_rate: 1e-3}", "{learning_rate: 1e-3, lr_scheduler_type: cosine_with_min_lr}")
    status, page, printed = run(schedule=wrong)
    assert (status, page) == (2, "")
    assert printed.startswith("error: training.lr_scheduler_type is cosine_with_min_lr, which cannot be made without ")


@pytest.mark.parametrize(("name", "status"), [("rollout/f1", 0), ("eval_rollout/recall", 0), ("rollout/accuracy", 2)])
def test_a_best_metric_that_evaluation_will_not_report_is_a_problem(run, name, status):
    best = ("{learning_rate: 1e-3}", f"{{learning_rate: 1e-3, metric_for_best_model: {name}}}")
    ended, _, problems = run(best=best)
    assert ended == status
    if status:
        assert problems.startswith(
            f"problem: stage rollouts: training.metric_for_best_model is {name!r}, which evaluation does not report; "
            "it takes one of rollout/f1, rollout/precision, rollout/recall, "
        )


def test_a_size_that_torch_cannot_make_ends_with_the_message_alone(run):
    status, _, printed = run(size=("hidden_size: 32", "hidden_size: -1"))
    assert status == 2
    assert printed.startswith("error: model.config is {")
    assert "RuntimeError: Trying to create tensor with negative dimension -1" in printed


def test_a_missing_vllm_is_a_problem(run, monkeypatch):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    status, _, problems = run(backend=("scope: window", "scope: window\n  rollout_backend: vllm"))
    assert status == 2
    assert (
        "problem: stage rollouts: rollout_matching.rollout_backend is vllm, but vLLM is not installed. Inst" in problems
    )


def test_a_window_that_cannot_hold_its_reference_answers_is_a_problem(run):
    status, _, problems = run(cap=("global_max_length: 768", "global_max_length: 64"))
    assert status == 2
    assert re.search(r"stage format: a window of (\d+) segments like the reference answers has [\d,]+ tokens", problems)
    assert "Lower per_device_train_batch_size" in problems


def test_a_warm_up_longer_than_the_run_is_said(run):
    _, page, _ = run(schedule=("{learning_rate: 1e-3}", "{learning_rate: 1e-3, warmup_steps: 900}"))
    assert page.count("all of them warm up (warmup_steps 900), so the learning rate never reaches 0.001") == 1


def test_a_name_that_no_hub_has_is_also_said_to_be_no_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = (
        rf"^model\.model_name_or_path is 'outpt', which .* There is no folder of this name in {tmp_path}, so a hub"
    )
    with pytest.raises(ValueError, match=message), parts._loading("model.model_name_or_path", "outpt"):
        raise OSError("no network")


def test_a_check_makes_no_repository_on_a_hub(run, monkeypatch):
    asked = []
    monkeypatch.setattr(check.RolloutSFTTrainer, "init_hf_repo", lambda self, *args, **kwargs: asked.append(self))
    hub = ("  report_to: none", "  report_to: none\n  push_to_hub: true\n  hub_model_id: a/b")
    assert run(hub=hub)[0] == 0
    assert asked == []
