"""The Slurm job: its script, and what it runs in which order, with stand-ins for Slurm's commands."""

import os
import subprocess
import sys

import pytest
import yaml

from examples.slurm.submit import main
from tests.distributed.launch import free_port

CONFIG = """
global_max_length: 260
custom: {trainer_variant: rollout_matching_sft}
model: {config: {model_type: qwen3, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        num_key_value_heads: 1, head_dim: 16, intermediate_size: 48},
        tokenizer_name_or_path: examples.digits.tokenizer:build_digits_tokenizer}
data: {train: {source: examples.digits.data:load_digits, split: train, size: 16, arguments: {max_digits: 3}}}
training: {use_cpu: true, report_to: none, max_steps: 2, per_device_train_batch_size: 2,
           gradient_accumulation_steps: 2, save_strategy: "no", output_dir: OUTPUT}
rollout_matching: {post_rollout_pack_scope: global, decoding: {max_new_tokens: 8}}
"""


def dry_run(capsys, *arguments):
    main([*arguments, "--dry-run"])
    return capsys.readouterr().out


def stand_ins(folder, srun):
    """Commands that come before Slurm's: two host names, and `srun` as given."""
    folder.mkdir()
    for name, text in (("scontrol", 'echo "$HOSTS" | tr , "\\n"'), ("srun", srun), ("curl", "exit 0")):
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x"}


def test_a_dry_run_prints_a_script_for_all_machines(capsys, tmp_path):
    text = dry_run(
        capsys, "--config", str(tmp_path / "my run.yaml"), "--nodes", "4", "--gpus", "8", "--server-nodes", "2"
    )
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True).returncode == 0
    assert "#SBATCH --nodes=6\n" in text
    assert f"'{tmp_path}/my run.yaml'" in text, "a path with a space is quoted"
    plain = dry_run(capsys, "--config", str(tmp_path / "my.yaml"), "--nodes", "2", "--gpus", "1")
    assert "rollout_sft.serve" not in plain


def test_the_servers_answer_before_the_training_starts_with_their_addresses(capsys, tmp_path):
    (tmp_path / "my.yaml").write_text(CONFIG)
    text = dry_run(capsys, "--config", str(tmp_path / "my.yaml"), "--nodes", "2", "--gpus", "8", "--server-nodes", "1")
    environment = stand_ins(
        tmp_path / "bin", f'echo "$@" >> {tmp_path}/calls; [[ "$*" == *rollout_sft.serve* ]] && sleep 30; exit 0'
    )
    subprocess.run(["bash"], input=text, text=True, check=True, env={**environment, "HOSTS": "a1,a2,b1"}, timeout=60)
    calls = (tmp_path / "calls").read_text().splitlines()
    trained, served = sorted(calls, key=lambda call: "rollout_sft.serve" in call)  # srun writes in the background
    assert "--nodelist=b1" in served
    assert served.endswith(f"--config {tmp_path}/my.yaml --port 8000 --host b1 --tensor-parallel-size 8")
    assert "--nodelist=a1,a2" in trained
    assert "--nnodes 2 --nproc_per_node 8" in trained
    assert "--rdzv_endpoint a1:29500" in trained
    assert trained.endswith(f"--config {tmp_path}/job-7.yaml")
    written = yaml.safe_load((tmp_path / "job-7.yaml").read_text())
    assert written["extends"] == str(tmp_path / "my.yaml")
    assert written["rollout_matching"]["vllm"] == {"mode": "server", "base_url": ["http://b1:8000"]}


@pytest.mark.ranks
def test_two_machines_find_each_other_and_train_one_model(capsys, tmp_path):
    """Two agents of torchrun, each with one rank, as `srun` starts them on two machines."""
    (tmp_path / "my.yaml").write_text(CONFIG.replace("OUTPUT", str(tmp_path / "out")))
    port = str(free_port())
    text = dry_run(capsys, "--config", str(tmp_path / "my.yaml"), "--nodes", "2", "--gpus", "1", "--rdzv-port", port)
    start = 'while [[ "$1" == --* ]]; do shift; done; "$@" & first=$!; "$@" && wait $first'
    environment = {**stand_ins(tmp_path / "bin", start), "HOSTS": "localhost,localhost", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash"], input=text, text=True, env=environment, timeout=300, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert len([line for line in lines if '"balance/cost_max_over_mean"' in line]) == 2, "two ranks, scope global"
    assert sys.executable in text
