"""The documented files train the digits' demo on two ranks of ZeRO-3, with an evaluation before and after."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from rollout_sft.config.run import load_run
from rollout_sft.parts import load_parts
from rollout_sft.trainer import RolloutSFTTrainer
from tests.deepspeed.conftest import DEMO, documented
from tests.distributed.launch import start_two_ranks
from tests.processes import wait_for

SHORT = {"use_cpu": True, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The folder of a run of the demo's stages, cut short."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "zero3.json").write_text(json.dumps(documented("json")))
    training = {**SHORT, **documented("yaml")["training"], "output_dir": str(folder / "run")}
    assert training["deepspeed"] == "zero3.json"
    training["deepspeed"] = str(folder / "zero3.json")
    stages = yaml.safe_load(DEMO.read_text())["stages"]
    for stage in stages:
        stage["data"]["train"]["size"] = 64
        stage["training"]["warmup_steps"] = 0
    run = {"extends": str(DEMO), "data": {"eval": {"size": 4}}, "training": training, "stages": stages}
    (folder / "demo.yaml").write_text(yaml.safe_dump(run))
    arguments = ("rollout_sft.train", "--config", str(folder / "demo.yaml"))
    ranks = wait_for(start_two_ranks("tests.deepspeed.without_compiler", folder, *arguments), timeout=600)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].text()[-4000:]
    return folder


def test_the_page_counts_the_parameters_of_partitioned_weights(demo):
    model = AutoModelForCausalLM.from_pretrained(demo / "run" / "format")
    page = " ".join((demo / "output.txt").read_text().split())
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters, all trained, bfloat16" in page
    assert " 0 parameters" not in page


@pytest.mark.parametrize("stage", ["format", "rollouts"])
def test_the_weights_load_whole_and_answer_as_the_run_did(demo, stage):
    folder = demo / "run" / stage
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    assert (folder / "checkpoint-2" / "model.safetensors").is_file()
    number = ("format", "rollouts").index(stage)
    (demo / "alone.yaml").write_text((demo / "demo.yaml").read_text().replace(str(demo / "zero3.json"), ""))
    run = load_run(demo / "alone.yaml")[number]
    parts = load_parts(run)
    trainer = RolloutSFTTrainer(
        model=model,
        args=run.training,
        processing_class=parts.tokenizer,
        target_builder=parts.target_builder,
        train_dataset=parts.train,
        eval_dataset=parts.eval,
    )
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    before, after = (line for line in lines if "eval_rollout/f1" in line)
    alone = {key: value for key, value in trainer.evaluate().items() if "/" in key}
    assert alone == {key: after[key] for key in alone}
    assert before != after
