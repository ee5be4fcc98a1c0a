"""The command a user types, with everything it writes."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from rollout_sft.config.run import load_run
from rollout_sft.output_folder import OutputFolderError, check_output_folders, find_folder_problems
from tests.processes import run

ROOT = Path(__file__).parents[2]

CONFIG = """
global_max_length: 768
model:
  tokenizer_name_or_path: examples.digits.tokenizer:build_digits_tokenizer
  config: {model_type: qwen3, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1,
           head_dim: 16, intermediate_size: 32}
data:
  train: {source: examples.digits.data:load_digits, size: 24, arguments: {max_digits: 3}}
  eval: {source: examples.digits.data:load_digits, split: eval, size: 4, arguments: {max_digits: 3}}
training:
  output_dir: OUT
  use_cpu: true
  report_to: none
  num_train_epochs: 1
  save_strategy: steps
  save_steps: 2
  per_device_train_batch_size: 3
  gradient_accumulation_steps: 4
  resume_from_checkpoint: RESUME
  callbacks: [examples.digits.pictures:DrawCanvases]
rollout_matching:
  post_rollout_pack_scope: window
  decoding: {max_new_tokens: 8}
stages:
  - {name: format, rollout_matching: {reference_fraction: 1.0}}
  - {name: rollouts, training: {learning_rate: 1e-3}}
"""


def write(folder, *, resume="null"):
    config = folder / "config.yaml"
    config.write_text(CONFIG.replace("OUT", str(folder / "out")).replace("RESUME", resume))
    return str(config)


def launch(folder):
    """The command as a user types it."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "rollout_sft.train", "--config", write(folder)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    done = launch(folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done


def test_both_stages_end_in_one_table(finished):
    _, done = finished
    table = done.stdout[done.stdout.rindex("config.yaml") :]
    for row in ("eval F1 before", "eval F1 after", "non-empty packs per window", "seconds per optimizer step"):
        assert row in table
    assert "format" in table
    assert "rollouts" in table


def test_every_stage_begins_with_a_page_and_the_run_ends_with_its_files(finished):
    folder, done = finished
    text = " ".join(done.stdout.split())
    assert text.index("config.yaml, stage 1 of 2: format") < text.index("evaluation before training")
    for fact in (
        "model Qwen3ForCausalLM, 12,416 parameters, all trained, float32",
        "training data 24 samples from examples.digits.data:load_digits",
        "window 3 samples x 4 micro-batches = 12 samples a step, trained in 4 micro-steps",
        "steps 2 optimizer steps in 1 epoch",
        "packing scope window, objective dense, infeasible: raise; packs of at most 768 tokens",
        "rollouts none: every sample is trained on its reference answer",
        "rollouts hf, at most 8 new tokens, greedy",
        "attention rollout_varlen: each packed segment by itself, without a dense mask",
        "leak probe passed: changing one segment moves its neighbours' logits by 0.0e+00",
    ):
        assert fact in text, fact
    files = text[text.rindex("Files ") :]
    assert str(folder / "out" / "rollouts") in files.replace(" ", "")
    for name in ("log.jsonl", "summary.json", "curves.png", "packs.png", "canvases.png"):
        assert name in files


def test_the_attention_the_probe_and_the_batch_size_are_visible(finished):
    _, done = finished
    assert "attention of packs: rollout_varlen" in done.stderr
    assert "packed segments are isolated: leak 0.0e+00" in done.stderr
    assert "First guess: " in done.stderr


def test_every_step_line_fits_a_terminal(finished):
    lines = [line for line in finished[1].stdout.splitlines() if line.startswith(("step ", "evaluation ", "trained "))]
    assert len(lines) == 10
    assert max(map(len, lines)) <= 120
    assert "\r" not in finished[1].stdout, "no progress bar outside of a terminal"


def test_every_stage_writes_model_log_summary_and_pictures(finished):
    folder, _ = finished
    for stage in ("format", "rollouts"):
        out = folder / "out" / stage
        written = {p.name for p in out.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "log.jsonl", "summary.json"} <= written
        assert {"packs.png", "curves.png", "canvases.png"} <= written
        for picture in ("packs.png", "curves.png"):
            assert (out / picture).read_bytes()[:4] == b"\x89PNG"
        entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        steps = [e["step"] for e in entries if "loss" in e]
        assert steps == [1, 2]
        assert sum("eval_rollout/f1" in e for e in entries) == 2


def test_the_second_stage_starts_from_the_weights_of_the_first(finished):
    folder, _ = finished
    first = json.loads((folder / "out" / "format" / "summary.json").read_text())
    second = json.loads((folder / "out" / "rollouts" / "summary.json").read_text())
    assert second["f1_before"] == first["f1_after"]
    assert first["rollout_s"] < 0.1, "stage one trains on reference answers alone"
    assert second["rollout_s"] > 0


def test_a_finished_run_resumes_without_training_again(finished):
    folder, _ = finished
    before = (folder / "out" / "rollouts" / "log.jsonl").read_bytes()
    done = run("rollout_sft.train", "--config", write(folder, resume="true"), output=folder / "resumed.txt")
    assert done.returncode == 0, done.text()[-4000:]
    assert "eval F1 after" in done.text()
    assert (folder / "out" / "rollouts" / "log.jsonl").read_bytes() == before


def test_a_finished_run_goes_on_when_its_end_is_moved(finished, tmp_path):
    shutil.copytree(finished[0] / "out", tmp_path / "out")
    config = Path(write(tmp_path, resume="true"))
    config.write_text(config.read_text().replace("num_train_epochs: 1", "num_train_epochs: 2"))
    done = run("rollout_sft.train", "--config", str(config), output=tmp_path / "resumed.txt")
    output = (tmp_path / "resumed.txt").read_text()
    assert done.returncode == 0, output[-2000:]
    assert "step 3/4 " in output
    assert "step 2/4 " not in output
    assert "training.num_train_epochs was 1.0 when " in output


def test_a_new_run_does_not_replace_the_results_of_another_one(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    done = run("rollout_sft.train", "--config", write(folder), output=folder / "again.txt")
    assert done.returncode == 2
    held = "checkpoint-2, model.safetensors, summary.json and 1 more"
    out = folder / "out" / "format"
    assert done.text().startswith(f"error: training.output_dir: {out} holds the results of an earlier run ({held}), ")
    assert "training.overwrite_output_dir: true to replace it." in done.text()
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}


@pytest.mark.parametrize(
    ("file", "training", "refused"),
    [
        ("summary.json", {}, True),
        ("checkpoint-5", {}, True),
        ("model-00001-of-00002.safetensors", {}, True),
        ("log.jsonl", {}, False),
        ("summary.json", {"overwrite_output_dir": True}, False),
        ("summary.json", {"resume_from_checkpoint": True}, False),
    ],
)
def test_results_in_the_output_folder_decide_whether_a_run_may_start(tmp_path, file, training, refused):
    (tmp_path / "out" / "format").mkdir(parents=True)
    (tmp_path / "out" / "format" / file).write_text("")
    stages = load_run(write(tmp_path))
    for stage in stages:
        for name, value in training.items():
            setattr(stage.training, name, value)
    problems = list(find_folder_problems(stages))
    assert len(problems) == refused
    assert all(file in problem for problem in problems)
    message = f"format holds the results of an earlier run \\({file}\\), which this run would replace. Name another"
    with pytest.raises(OutputFolderError, match=message) if refused else nullcontext():
        check_output_folders(stages)


def test_folders_that_cannot_be_used_are_named_before_anything_is_loaded(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "format").write_text("")
    first, second = load_run(write(tmp_path, resume=f"{tmp_path}/gone"))
    assert list(find_folder_problems([first])) == [
        f"training.output_dir: {tmp_path}/out/format is a file; give the path of a folder.",
        f"training.resume_from_checkpoint is {tmp_path}/gone: no such folder; the path is taken from {os.getcwd()}.",
    ]
    assert len(list(find_folder_problems([second]))) == 1


def test_attention_that_cannot_be_used_is_named_by_its_key(finished):
    folder, _ = finished
    bad = folder / "attention.yaml"
    fresh = f"training: {{output_dir: {folder}/none, resume_from_checkpoint: false}}"
    bad.write_text(f"extends: config.yaml\n{fresh}\nmodel: {{attn_implementation: flash}}\n")
    done = run("rollout_sft.train", "--config", str(bad), output=folder / "attention.txt")
    assert done.returncode == 2
    assert "error: model.attn_implementation is 'flash', which cannot be used: Leave attn_implement" in done.text()
    assert "transformers says: Specified `attn_implementation=" in done.text()


def test_a_bad_configuration_is_one_clear_message(finished):
    folder, _ = finished
    bad = folder / "bad.yaml"
    bad.write_text("extends: config.yaml\ntraining: {learning_rat: 1}\n")
    done = run("rollout_sft.train", "--config", str(bad), output=folder / "bad.txt")
    assert done.returncode == 2
    assert "Traceback" not in done.text()
    assert "unknown key training.learning_rat: the nearest valid key is learning_rate" in done.text()


def test_a_missing_file_of_a_later_stage_is_found_before_anything_is_loaded(finished):
    folder, _ = finished
    bad = folder / "gone.yaml"
    bad.write_text(
        "extends: config.yaml\nstages: [{name: a}, {name: b, data: {eval: {source: gone.json}}}]\n"
        "model: {config: {model_type: no_such_type}}\n"
    )
    done = run("rollout_sft.train", "--config", str(bad), output=folder / "gone.txt")
    assert done.returncode == 2
    assert done.text().startswith("error: data.eval.source: gone.json: no such file; the path is taken from ")
    assert done.text().count("\n") == 1


def test_a_model_that_cannot_be_loaded_is_named_by_its_key(finished):
    folder, _ = finished
    bad = folder / "model.yaml"
    fresh = f"training: {{output_dir: {folder}/none, resume_from_checkpoint: false}}"
    bad.write_text(f"extends: config.yaml\n{fresh}\nmodel: {{config: {{model_type: no_such_type}}}}\n")
    done = run("rollout_sft.train", "--config", str(bad), output=folder / "model.txt")
    assert done.returncode == 2
    assert "error: model.config.model_type is 'no_such_type', which transformers does not know; it takes" in done.text()
    assert "Traceback" not in done.text()
