"""What a release can rename is asked before training; a version never tested is named once."""

import inspect
import logging
import subprocess
import sys

import pytest
import transformers
from accelerate.state import GradientState
from transformers import trainer as transformers_trainer

from rollout_sft import RolloutSFTTrainer
from rollout_sft.config import releases
from rollout_sft.model import layer_kinds
from tests.hybrids import hybrid

PRIVATE = (*releases.TRAINER_CALLS, "_tr_loss", "loss_is_scaled_for_ga")


def trainer_after(*names):
    """The installed `Trainer` of a release that renamed these names, wherever it uses them."""
    source = inspect.getsource(transformers.Trainer)
    for name in names:
        source = source.replace(name, f"renamed{name}")
    space = dict(vars(transformers_trainer))
    exec(source, space)
    return space["Trainer"]


def test_the_installed_releases_have_every_name():
    assert releases.missing_names() == []
    assert releases.missing_names(trainer_after()) == [], "the renamed ones below differ by their name alone"


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_that_a_release_renames_is_named(name):
    others = [other for other in PRIVATE if other.startswith(name)]  # _save and _save_checkpoint
    assert releases.missing_names(trainer_after(name)) == [f"Trainer.{other}" for other in others]


def test_a_method_that_is_there_and_never_called_is_named():
    renamed = trainer_after("_save_scaler")
    renamed._save_scaler = transformers.Trainer._save_scaler  # kept for those who call it
    assert releases.missing_names(renamed) == ["Trainer._save_scaler"]


def test_another_gradient_state_is_named():
    gradients = type("GradientState", (), {})
    assert releases.missing_names(gradients=gradients) == ["GradientState._set_sync_gradients of accelerate"]
    assert releases.missing_names(gradients=GradientState) == []


def test_every_private_method_that_is_overridden_is_listed():
    own = [base for base in RolloutSFTTrainer.__mro__ if base.__module__.startswith("rollout_sft")]
    private = {name for base in own for name in vars(base) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private if hasattr(transformers.Trainer, name)} == set(releases.TRAINER_CALLS)


def test_a_trainer_is_refused_by_name_where_a_release_renamed_a_method(make_trainer, monkeypatch):
    monkeypatch.setattr(releases, "missing_names", lambda: ["Trainer._save_scaler"])
    with pytest.raises(
        releases.ReleaseError, match=r"transformers \d.* no longer uses Trainer\._save_scaler\. Install tested"
    ):
        make_trainer()


def test_an_untested_version_gets_one_warning(make_trainer, monkeypatch, caplog):
    monkeypatch.setitem(releases.TESTED, "transformers", ("4.0.0", "4.1.0"))
    releases._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger=releases.__name__):
        make_trainer()
        make_trainer()
    said = [record.getMessage() for record in caplog.records if record.name == releases.__name__]
    assert len(said) == 1
    assert f"transformers {transformers.__version__} (tested 4.0.0 to 4.1.0)" in said[0]


@pytest.mark.parametrize(
    ("installed", "named"),
    [("5.19.1", True), ("5.20.0", False), ("5.23.0+cpu", False), ("5.24.0", False), ("5.24.1", True), ("5.9.0", True)],
)
def test_versions_between_the_lowest_and_the_newest_tested_are_not_named(installed, named, monkeypatch):
    monkeypatch.setattr(releases, "version", lambda package: installed)
    monkeypatch.setattr(releases, "TESTED", {"transformers": ("5.20.0", "5.24.0")})
    assert bool(releases.untested()) == named


def test_a_name_that_cannot_be_imported_is_explained_with_the_versions():
    script = (
        "import transformers.masking_utils as m; del m.sdpa_mask\n"
        "try:\n    import rollout_sft\nexcept ImportError as error:\n    print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120).stdout
    lowest, newest = releases.TESTED["transformers"]
    assert said.startswith(f"ReleaseError transformers {transformers.__version__} was tested from {lowest} to {newest}")
    assert "cannot import name 'sdpa_mask' from 'transformers.masking_utils'" in said


def test_a_state_by_an_unknown_argument_is_refused_by_name(make_trainer, monkeypatch, tokenizer):
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    assert make_trainer(model=hybrid("mamba2", **size)).recurrent.looped
    monkeypatch.setattr(layer_kinds, "CACHE_ARGUMENTS", {"what it was called before"})
    with pytest.raises(ValueError, match=r"^Mamba2ForCausalLM carries a state along the row, and none of its layers"):
        make_trainer(model=hybrid("mamba2", **size))
    assert make_trainer(model=hybrid("mamba2", **size), packing=False)
