"""A resume that differs is refused by name before anything is evaluated or written, by the command and by its check."""

import hashlib
import json
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import check, train
from tests.tiny import SHAPE

CONFIG = {
    "global_max_length": 320,
    "model": {
        "model_name_or_path": "BASE",
        "peft": {"peft_type": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    },
    "data": {
        "train": {"source": "examples.digits.data:load_digits", "size": 12, "arguments": {"max_digits": 3}},
        "eval": {"source": "examples.digits.data:load_digits", "size": 2, "split": "eval"},
    },
    "training": {
        **{"output_dir": "OUT", "use_cpu": True, "report_to": "none", "max_steps": 2, "save_steps": 1, "seed": 3},
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "resume_from_checkpoint": True},
    },
    "rollout_matching": {
        "post_rollout_pack_scope": "window",
        "reference_fraction": 1.0,
        "decoding": {"max_new_tokens": 4},
    },
}
WHOLE = {**CONFIG, "model": {"model_name_or_path": "BASE"}}
BUILT = {
    **CONFIG,
    "model": {
        "config": {"model_type": "qwen3", **SHAPE},
        "tokenizer_name_or_path": "examples.digits.tokenizer:build_digits_tokenizer",
    },
}
RUNS = {"adapter": CONFIG, "whole": WHOLE, "built": BUILT}


def write(folder, document, name="config.yaml"):
    text = yaml.safe_dump(document).replace("BASE", str(folder / "base")).replace("OUT", str(folder / "out"))
    (folder / name).write_text(text)
    return str(folder / name)


def with_value(document, key, value):
    """The document with one more value, at a dotted key."""
    document = json.loads(json.dumps(document))
    *path, last = key.split(".")
    at = document
    for name in path:
        at = at.setdefault(name, {})
    at[last] = value
    return document


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_base(folder):
    """A folder with a model, as a user would have it."""
    torch.manual_seed(0)
    tokenizer = build_digits_tokenizer()
    config = LlamaConfig(**SHAPE, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


@pytest.fixture(scope="session")
def first_runs(tmp_path_factory):
    """Kind of run -> the folder of its base model and of its two finished steps."""
    made = {}
    for kind, document in RUNS.items():
        folder = tmp_path_factory.mktemp(kind)
        make_base(folder)
        train.main(["--config", write(folder, document)])
        made[kind] = folder
    return made


@pytest.fixture
def start(first_runs, tmp_path):
    """Copies a run to a place of its own, stopped after its first step or finished."""

    def start(kind, *, finished=False):
        shutil.copytree(first_runs[kind], tmp_path, dirs_exist_ok=True)
        if not finished:
            shutil.rmtree(tmp_path / "out" / "checkpoint-2")
            (tmp_path / "out" / "summary.json").unlink()
        return tmp_path

    return start


@pytest.fixture
def refusal(capsys):
    """Runs a command to its end and returns what it printed as errors; nothing is written."""

    def refusal(command, folder, document):
        path = write(folder, document)
        before = hashes(folder)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command.main(["--config", path])
        printed = capsys.readouterr()
        assert ended.value.code == 2, printed.err
        assert hashes(folder) == before, "a refused resume leaves every file as it was"
        assert "evaluation" not in printed.out or command is check
        return printed.err

    return refusal


def edit_json(file, key, value):
    def edit(folder):
        path = folder / "base" / file
        content = json.loads(path.read_text())
        (content[key[0]] if len(key) == 2 else content)[key[-1]] = value
        path.write_text(json.dumps(content))

    return edit


def rewrite_weights(folder):
    path = folder / "base" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.down_proj.weight"][3, 5] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})


def write_template(folder):
    (folder / "base" / "chat_template.jinja").write_text("{{ messages[0].content }}")


CHANGES = {
    # kind of run, what changes (a key and its value, or files of the base), the name in the message, old and new value
    "alpha": ("adapter", ("model.peft.lora_alpha", 8), "model.peft.lora_alpha", "4", "8"),
    "rslora": ("adapter", ("model.peft.use_rslora", True), "model.peft.use_rslora", "False", "True"),
    "lora dropout": ("adapter", ("model.peft.lora_dropout", 0.5), "model.peft.lora_dropout", "0.0", "0.5"),
    "base rewritten in place": ("adapter", rewrite_weights, "model.base_weights", "'[0-9]+ values", "'[0-9]+ values"),
    "norm of the base": (
        "adapter",
        edit_json("config.json", ["rms_norm_eps"], 1e-3),
        "model.config.rms_norm_eps",
        "1e-06",
        "0.001",
    ),
    "dropout of the model": (
        "whole",
        edit_json("config.json", ["attention_dropout"], 0.5),
        "model.config.attention_dropout",
        "0.0",
        "0.5",
    ),
    "rope of the folder": (
        "whole",
        edit_json("config.json", ["rope_parameters", "rope_theta"], 5e5),
        "model.config.rope_parameters.rope_theta",
        "10000.0",
        "500000.0",
    ),
    "ends of rollouts": (
        "whole",
        edit_json("generation_config.json", ["eos_token_id"], [1, 5]),
        "model.generation_config.eos_token_id",
        "1",
        r"\[1, 5\]",
    ),
    "chat template": ("whole", write_template, "tokenizer.chat_template", "'", "'"),
    "activation": ("built", ("model.config.hidden_act", "gelu"), "model.config.hidden_act", "'silu'", "'gelu'"),
    "rope": (
        "built",
        ("model.config.rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
        "model.config.rope_parameters.rope_theta",
        "10000.0",
        "500000.0",
    ),
    "attention": ("built", ("model.attn_implementation", "eager"), "model.attn_implementation", "'sdpa'", "'eager'"),
    "idle micro-steps": (
        "built",
        ("rollout_matching.idle_micro_steps", "skip"),
        "rollout_matching.idle_micro_steps",
        "'dummy'",
        "'skip'",
    ),
    "batch of rollouts": (
        "built",
        ("rollout_matching.rollout_batch_size", 2),
        "rollout_matching.rollout_batch_size",
        "None",
        "2",
    ),
    "data": ("built", ("data.train.arguments.max_digits", 2), "data.train", "'12 samples", "'12 samples"),
    "compiled": ("built", ("training.full_determinism", True), "training.full_determinism", "False", "True"),
    "frozen": ("whole", ("model.freeze", ["*.v_proj.*"]), "model", "'[0-9]+ parameters", "'[0-9]+ parameters"),
}


@pytest.mark.parametrize("finished", [False, True], ids=["stopped", "finished"])
@pytest.mark.parametrize("name", CHANGES)
def test_whatever_shapes_the_weights_is_refused_by_name(start, refusal, name, finished):
    kind, change, key, old, new = CHANGES[name]
    folder = start(kind, finished=finished)
    document = RUNS[kind]
    if callable(change):
        change(folder)
    else:
        document = with_value(document, *change)
    source = "out" if finished else "checkpoint-1"
    changed = rf"{source} was saved by a run with other settings: .*\b{re.escape(key)} was {old}.* and is {new}"
    what_to_do = "start a new run from" if key == "model" else rf"resume_with_changes: \[.*{re.escape(key)}"
    for command in (train, check):
        said = refusal(command, folder, document)
        assert re.search(changed, said), said
        assert re.search(what_to_do, said), said
        assert ("error: " if command is train else "problem: stage train: ") in said, said


def test_the_same_base_in_another_place_is_the_same(start, capsys):
    folder = start("adapter")
    shutil.move(folder / "base", folder / "moved")
    path = write(folder, with_value(CONFIG, "model.model_name_or_path", str(folder / "moved")))
    check.main(["--config", path])
    train.main(["--config", path])
    assert (folder / "out" / "checkpoint-2").is_dir()


def test_an_allowed_change_of_an_adapter_takes_effect(start, caplog):
    folder = start("adapter")
    changes = ["model.peft.lora_alpha", "model.base_weights"]
    rewrite_weights(folder)
    document = with_value(with_value(CONFIG, "model.peft.lora_alpha", 8), "training.resume_with_changes", changes)
    train.main(["--config", write(folder, document)])
    assert json.loads((folder / "out" / "adapter_config.json").read_text())["lora_alpha"] == 8
    assert "resumed with model.peft.lora_alpha: 8 (was 4)." in caplog.text


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_a_damaged_checkpoint_is_refused_before_anything_is_written(start, refusal, kind):
    folder = start(kind)
    weights = "adapter_model" if kind == "adapter" else "model"
    (folder / "out" / "checkpoint-1" / f"{weights}.safetensors").unlink()
    for command in (train, check):
        assert f"{weights}.safetensors is missing" in refusal(command, folder, RUNS[kind])


@pytest.mark.parametrize(
    ("gone", "what"),
    [
        (["optimizer.pt", "scheduler.pt", "rng_state.pth"], "the optimizer's state"),  # as save_only_model saves
        (["optimizer.pt"], "the optimizer's state"),
        (["rng_state.pth"], "the random generators' states"),
    ],
)
def test_a_checkpoint_with_the_weights_alone_is_refused(start, refusal, gone, what):
    folder = start("built")
    for name in gone:
        (folder / "out" / "checkpoint-1" / name).unlink()
    (folder / "out" / "checkpoint-1" / "finished").write_text("")
    for command in (train, check):
        assert f"checkpoint-1 does not hold {what}: training.save_only_model" in refusal(command, folder, BUILT)


def test_a_checkpoint_that_save_only_model_saved_is_refused(start, refusal):
    folder = start("built")
    shutil.rmtree(folder / "out")
    document = with_value(BUILT, "training.save_only_model", True)
    train.main(["--config", write(folder, document)])
    (folder / "out" / "summary.json").unlink()
    assert "checkpoint-2 does not hold the optimizer's state" in refusal(train, folder, document)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder; the path is taken from"),
        (lambda path: path.mkdir(), "has no file named finished: its save was interrupted"),
        (lambda path: path.write_text(""), "no such folder"),
    ],
    ids=["missing", "empty", "a file"],
)
def test_a_checkpoint_that_is_none_is_refused_by_its_path(start, refusal, make, message):
    folder = start("built")
    make(folder / "gone")
    document = with_value(BUILT, "training.resume_from_checkpoint", str(folder / "gone"))
    for command in (train, check):
        assert message in refusal(command, folder, document)


def test_a_checkpoint_of_another_family_is_refused_by_its_type(start, refusal):
    folder = start("built")
    document = with_value(BUILT, "model.config.model_type", "llama")
    for command in (train, check):
        said = refusal(command, folder, document)
        assert "model cannot change in a resumed run: the saved weights do not fit another model" in said
        assert "model.config.model_type was 'qwen3' and is 'llama'" in said
        assert len(said) < 3000


def test_a_path_and_true_resume_the_same(start):
    folder = start("built")
    train.main(["--config", write(folder, BUILT)])
    by_true = load_file(folder / "out" / "model.safetensors")
    folder = start("built")
    shutil.rmtree(folder / "out" / "checkpoint-2", ignore_errors=True)
    path = str(folder / "out" / "checkpoint-1")
    train.main(["--config", write(folder, with_value(BUILT, "training.resume_from_checkpoint", path))])
    by_path = load_file(folder / "out" / "model.safetensors")
    assert all(torch.equal(tensor, by_path[name]) for name, tensor in by_true.items())
