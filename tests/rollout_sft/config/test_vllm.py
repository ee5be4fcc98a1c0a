"""What `rollout_matching.vllm` takes; none of it needs vLLM."""

import re
from importlib.util import find_spec

import pytest
import torch

from rollout_sft.config.run import load_run
from rollout_sft.config.vllm import VLLMConfig
from tests import processes

BASE = """
global_max_length: 512
model: {config: {model_type: qwen3}, tokenizer_name_or_path: examples.digits.tokenizer:build_digits_tokenizer}
data: {train: {source: examples.digits.data:load_digits}}
training: {output_dir: OUT, use_cpu: true, report_to: none}
rollout_matching: {rollout_backend: vllm, vllm: VLLM}
"""


@pytest.fixture
def load(tmp_path):
    def load(vllm):
        path = tmp_path / "config.yaml"
        path.write_text(BASE.replace("OUT", str(tmp_path / "out")).replace("VLLM", vllm))
        return load_run(path)[0].training

    return load


def test_the_default_backend_is_still_hugging_face(load, tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text(BASE.replace("rollout_backend: vllm, vllm: VLLM", "").replace("OUT", str(tmp_path)))
    assert load_run(path)[0].training.rollout_backend == "hf"
    assert load("{}").rollout_backend == "vllm"


def test_values_arrive_with_their_types(load):
    config = load(
        "{mode: colocate, gpu_memory_utilization: 0.25, max_model_len: 900, enforce_eager: true, "
        "tensor_parallel_size: 2, engine_args: {kv_cache_memory_bytes: 67108864, block_size: 16}}"
    ).vllm
    assert (config.mode, config.gpu_memory_utilization, config.max_model_len) == ("colocate", 0.25, 900)
    assert (config.enforce_eager, config.tensor_parallel_size) == (True, 2)
    assert config.engine_args == {"kv_cache_memory_bytes": 67108864, "block_size": 16}


def test_one_server_or_several(load):
    one = load("{mode: server, base_url: 'http://127.0.0.1:8000/v1/', timeout: 30, retries: 0}").vllm
    assert (one.urls, one.timeout, one.retries) == (["http://127.0.0.1:8000"], 30.0, 0)
    several = load("{mode: server, base_url: ['http://a:1', 'https://b:2/']}").vllm
    assert several.urls == ["http://a:1", "https://b:2"]


ERRORS = {
    "{mod: server}": "unknown key rollout_matching.vllm.mod: the nearest valid key is mode, which takes colocate |",
    "{mode: remote}": "rollout_matching.vllm.mode is 'remote'; it takes colocate | server",
    "{retries: many}": "rollout_matching.vllm.retries is 'many'; it takes an integer",
    "{retries: -1}": "rollout_matching.vllm.retries is -1; it takes 0 or more",
    "{gpu_memory_utilization: 1.5}": "gpu_memory_utilization is 1.5; it takes more than 0 and at most 1",
    "{timeout: 0}": "rollout_matching.vllm.timeout is 0.0; it takes more than 0 seconds",
    "{mode: server}": "rollout_matching.vllm.base_url is missing; mode: server takes the address",
    "{mode: server, base_url: '127.0.0.1:8000'}": "takes one or several different addresses that begin with http://",
    "{mode: server, base_url: ['http://a:1', 'http://a:1/']}": "takes one or several different addresses",
    "{mode: server, base_url: 'http://a:1', weight_transfer: disk}": "is 'disk'; it takes folder | nccl | gloo",
    "{mode: server, base_url: 'http://a:1', weight_transfer: gloo, weights_dir: /w}": "gloo writes nothing",
    "{base_url: 'http://a:1'}": "base_url is 'http://a:1', but mode: colocate asks no server. Set mode: server",
}


@pytest.mark.parametrize("vllm", ERRORS)
def test_errors_name_the_key_and_what_it_takes(load, vllm):
    with pytest.raises(ValueError, match=re.escape(ERRORS[vllm])):
        load(vllm)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nccl_without_a_gpu_is_refused_before_anything_runs(load):
    with pytest.raises(ValueError, match="weight_transfer is nccl, which needs a GPU here and in every server"):
        load("{mode: server, base_url: 'http://a:1', weight_transfer: nccl}")


def test_a_file_that_extends_one_for_vllm_can_put_its_defaults_back(load, tmp_path):
    load("{mode: server, base_url: 'http://a:1', retries: 0}")
    path, text = tmp_path / "local.yaml", "extends: config.yaml\nrollout_matching: {rollout_backend: hf%s}\n"
    path.write_text(text % "")
    with pytest.raises(ValueError, match="vllm sets mode, base_url, retries, but") as raised:
        load_run(path)
    defaults = re.search(r"sets the defaults instead: (vllm: .*)\.$", str(raised.value))[1]
    path.write_text(text % f", {defaults}")
    assert load_run(path)[0].training.vllm == VLLMConfig()


def test_vllm_is_not_imported_before_it_is_used(tmp_path):
    done = processes.run("tests.rollout_sft.config.vllm_imports", output=tmp_path / "output.txt")
    assert (done.returncode, done.text().strip()) == (0, "False"), done.text()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_says_how_to_get_it(load, make_trainer):
    trainer = make_trainer(rollout_backend="vllm", decoding={"max_new_tokens": 4})
    with pytest.raises(ImportError, match=r"vLLM cannot be imported .*pip install 'packsched\[train,vllm\]'"):
        trainer.train()
