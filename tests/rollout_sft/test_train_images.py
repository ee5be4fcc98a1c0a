"""The training command on a folder of images: two stages from a JSONL file with boxes in pixels."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image as Pictures
from safetensors.torch import load_file

from rollout_sft.check import main as check
from rollout_sft.config.run import load_run
from rollout_sft.parts import load_parts
from rollout_sft.train import main as train
from tests.rollout_sft.data.image_models import CONFIG

RUN = {
    "global_max_length": 256,
    "model": {
        "tokenizer_name_or_path": "tests.rollout_sft.data.image_models:image_tokenizer",
        "config": CONFIG,
        "freeze": ["model.visual.patch_embed.*"],
    },
    "data": {"boxes": "norm1000", "train": {"source": "train.jsonl"}, "eval": {"source": "train.jsonl", "size": 2}},
    "training": {
        "output_dir": "runs",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "no",
    },
    "rollout_matching": {"post_rollout_pack_scope": "window", "decoding": {"max_new_tokens": 8}},
    "stages": [
        {"name": "format", "rollout_matching": {"reference_fraction": 1.0}},
        {"name": "rollouts", "rollout_matching": {"reference_fraction": 0.0}},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which both commands ran."""
    folder = tmp_path_factory.mktemp("detector")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i, (width, height) in enumerate([(24, 16), (16, 32), (40, 40), (8, 8)]):
        Pictures.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"photos/{i}.png")
        box = [0, 0, width // 2, height]
        rows.append(
            {
                "images": [f"photos/{i}.png"],
                "messages": [{"role": "user", "content": "<image>where?"}],
                "objects": [{"desc": "cat", "bbox_2d": box}],
            }
        )
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        check(["--config", "run.yaml"])
        assert not (folder / "runs").exists(), "checking writes nothing"
        train(["--config", "run.yaml"])
    return folder


def test_both_stages_train_and_save_a_model_that_reads_images(folder):
    weights = []
    for stage in ("format", "rollouts"):
        saved = folder / "runs" / stage
        assert json.loads((saved / "preprocessor_config.json").read_text())["patch_size"] == 4
        weights.append(load_file(saved / "model.safetensors"))
    moved = {name for name in weights[0] if not weights[0][name].equal(weights[1][name])}
    assert {n for n in moved if n.startswith("model.visual.")}, "the tower is trained on rollouts"
    assert not {n for n in moved if "patch_embed" in n}, "but for what is frozen"


def test_the_rollouts_of_images_are_trained_and_scored(folder):
    lines = [json.loads(line) for line in (folder / "runs/rollouts/log.jsonl").read_text().splitlines()]
    assert any("eval_rollout/f1" in line for line in lines)
    assert any(line.get("rollout/new_tokens_mean", 0) > 0 for line in lines)


def test_a_resume_compares_the_image_processor_and_the_images(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    resumed = {**RUN, "training": {**RUN["training"], "resume_from_checkpoint": True}}
    (folder / "resumed.yaml").write_text(yaml.safe_dump(resumed))
    for command in (train, check):
        command(["--config", "resumed.yaml"])  # both stages are finished and have not changed
    smaller = {**resumed, "model": {**RUN["model"], "max_pixels": 1024}}
    (folder / "resumed.yaml").write_text(yaml.safe_dump(smaller))
    capsys.readouterr()
    for command in (train, check):
        with pytest.raises(SystemExit):
            command(["--config", "resumed.yaml"])
        said = capsys.readouterr().err
        assert "runs/format was saved by a run with other settings: " in said
        assert "image_processor.size.longest_edge was " in said or "image_processor.max_pixels was " in said, said


def test_a_prompt_without_room_for_its_answer_ends_the_run_before_the_model_is_loaded(folder, monkeypatch):
    monkeypatch.chdir(folder)
    # 1 token is the dummy image's and 8 are the answer's; prompts have 20 tokens besides those of the image
    (folder / "small.yaml").write_text(yaml.safe_dump({**RUN, "global_max_length": 40}))
    monkeypatch.setattr("rollout_sft.parts.load_model", None)
    stage = load_run("small.yaml")[1]
    with pytest.raises(ValueError, match=r"train\.jsonl:3: the prompt has 45 tokens, 25 of them for images .* and 31"):
        load_parts(stage)
