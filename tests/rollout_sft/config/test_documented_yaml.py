"""Every YAML block of the pages loads, and so do the project's own configurations."""

import re
from dataclasses import asdict, is_dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from rollout_sft.config.run import load_run
from tests.rollout_sft.config.conftest import BASE

ROOT = Path(__file__).parents[3]


def test_the_projects_own_configurations_load():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert load_run(path), path


def documented():
    """Every YAML block of the pages, by the page and its line."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text[: block.start()].count("\n") + 1
            yield pytest.param(block[1], id=f"{page.relative_to(ROOT)}:{line}")


def test_there_are_documented_configurations():
    assert len(list(documented())) >= 5


@pytest.mark.parametrize("block", [*documented()])
def test_documented_yaml_loads(load, tmp_path, monkeypatch, block):
    """With the sections that a fragment leaves out; each key that it shows arrives."""
    base = yaml.safe_load(BASE.replace("OUT", str(tmp_path / "out")))
    shown = yaml.safe_load(block)
    rest = {key: value for key, value in base.items() if key not in shown or key == "training"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(rest))
    monkeypatch.chdir(tmp_path)
    shown_json = re.search(
        r"```json\n(.*?)```", (ROOT / "docs" / "multi_gpu.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "zero3.json").write_text(shown_json[1])
    if "deepspeed" in shown.get("training", {}) and not find_spec("deepspeed"):
        with pytest.raises(ImportError, match="deepspeed"):  # so far everything was accepted
            load("extends: base.yaml\n" + block)
        return
    stages = load("extends: base.yaml\n" + block)
    given = {**shown.get("training", {}), **shown.get("rollout_matching", {})}
    folder = given.pop("output_dir", None)
    if given.get("report_to") == "none":
        given["report_to"] = []
    for stage in stages:
        assert folder is None or stage.training.output_dir == (f"{folder}/{stage.name}" if len(stages) > 1 else folder)
        for key, value in given.items():
            arrived = getattr(stage.training, key)
            arrived = asdict(arrived) if is_dataclass(arrived) else arrived
            assert value.items() <= arrived.items() if isinstance(value, dict) else arrived == value
