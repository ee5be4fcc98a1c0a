"""Jobs of `examples/slurm/submit.py` on a real Slurm with two nodes: they run, are cancelled, and resume."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.slurm.cluster import CORES, Cluster, free_port, missing

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed (make test-slurm): {missing()}"),
]
CONFIG = """
global_max_length: 260
custom: {trainer_variant: rollout_matching_sft}
model: {config: {model_type: qwen3, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        num_key_value_heads: 1, head_dim: 32, intermediate_size: 48},
        tokenizer_name_or_path: examples.digits.tokenizer:build_digits_tokenizer}
data: {train: {source: examples.digits.data:load_digits, split: train, size: 32, arguments: {max_digits: 3}}}
training: {use_cpu: true, report_to: none, max_steps: 6, per_device_train_batch_size: 2, save_steps: 2,
           gradient_accumulation_steps: 2, output_dir: OUTPUT, resume_from_checkpoint: RESUME,
           callbacks: ["tests.slurm.spy:Cores", "tests.slurm.spy:Patience"]}
rollout_matching: {post_rollout_pack_scope: global, decoding: {max_new_tokens: 8}}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


def configure(folder, *, resume=False):
    folder.mkdir(exist_ok=True)
    text = CONFIG.replace("OUTPUT", str(folder / "out")).replace("RESUME", str(resume).lower())
    (folder / "my.yaml").write_text(text)


def submit(cluster, folder, *options, nodes=2):
    """Submits a job with the user's own command and returns its number."""
    command = [sys.executable, "-m", "examples.slurm.submit", "--config", str(folder / "my.yaml"), "--gpus", "1"]
    command += ["--nodes", str(nodes), "--rdzv-port", str(free_port()), "--time", "00:10:00", *options]
    done = subprocess.run(command, env=cluster.environment, text=True, capture_output=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def output(job):
    return Path(f"slurm-{job}.out")


def end_of(cluster, folder, job, seconds=240):
    try:
        cluster.wait(lambda: cluster.ended(job), seconds, f"job {job}")
        text = output(job).read_text(errors="replace")
        assert cluster.state(job) == "COMPLETED", text[-20000:]
    finally:
        output(job).rename(folder / "job.txt") if output(job).exists() else None
    return text


def weights(folder):
    return load_file(folder / "out" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory):
    """The run that nobody cancelled."""
    folder = tmp_path_factory.mktemp("whole")
    configure(folder)
    return folder, end_of(cluster, folder, submit(cluster, folder))


def ranks_of(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def test_two_nodes_train_one_model_with_all_their_cores(whole):
    folder, _ = whole
    ranks = ranks_of(folder)
    assert [rank["ranks"] for rank in ranks] == [2, 2]
    assert {rank["node"] for rank in ranks} == {"0", "1"}, "a rank on each node"
    assert [rank["cores"] for rank in ranks] == [CORES, CORES], "a rank gets the cores of its node, not one"
    assert {rank["restarts"] for rank in ranks} == {"0"}, "no job started twice"


def test_tables_and_files_come_once_for_the_job_not_for_each_machine(whole):
    folder, text = whole
    assert text.count("1 of 1 stages") == 1, text[-3000:]
    assert text.count("summary.json") == 1
    assert text.count("have a reference answer longer than") == 1, "warnings as well"
    assert text.count("attention of packs:") == 1, "lines of the log as well"
    assert (folder / "out" / "log.jsonl").read_text().count('"loss"') == 6


def test_a_cancelled_job_resumes_as_if_nothing_had_happened(cluster, whole, tmp_path):
    configure(tmp_path)
    (tmp_path / "wait").touch()
    job = submit(cluster, tmp_path)
    cluster.wait(lambda: any(tmp_path.glob("out/checkpoint-2/*.json")), 240, "the first checkpoint")
    cluster.command("scancel", job)
    cluster.wait(lambda: cluster.ended(job), 60, "the end of the cancelled job")
    assert cluster.state(job) == "CANCELLED"
    output(job).unlink(missing_ok=True)
    (tmp_path / "wait").unlink()
    assert not (tmp_path / "out" / "model.safetensors").exists(), "it was cancelled too late to show anything"
    configure(tmp_path, resume=True)
    end_of(cluster, tmp_path, submit(cluster, tmp_path))
    one, other = weights(tmp_path), weights(whole[0])
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_cores_for_each_gpu_can_be_asked_for(cluster, tmp_path):
    configure(tmp_path)
    end_of(cluster, tmp_path, submit(cluster, tmp_path, "--cpus-per-gpu", "1"))
    assert [rank["cores"] for rank in ranks_of(tmp_path)] == [1, 1]


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (make test-slurm makes .venv-vllm)")
def test_a_node_serves_vllm_while_the_other_trains(cluster, tmp_path):
    configure(tmp_path)
    (tmp_path / "my.yaml").write_text((tmp_path / "my.yaml").read_text().replace("max_steps: 6", "max_steps: 2"))
    job = submit(cluster, tmp_path, "--server-nodes", "1", "--port", str(free_port()), nodes=1)
    text = end_of(cluster, tmp_path, job, seconds=420)
    assert (tmp_path / "out" / "model.safetensors").exists(), text[-3000:]
    written = (tmp_path / f"job-{job}.yaml").read_text()
    assert f"http://{cluster.nodes[1]}:" in written or f"http://{cluster.nodes[0]}:" in written
