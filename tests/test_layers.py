"""Inside rollout_sft the folders are layers: each may import itself and the folders that its line names.

The files beside the folders (`trainer`, `train` and others) stand on top and may import all of them, never the reverse.
Sources are read, not run, so an import inside a function counts as well, but one for type checkers alone does not.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "ranks": {"reporting"},
    "config": set(),
    "inputs": set(),
    "reporting": {"config"},
    "model": {"config", "inputs"},
    "data": {"config", "inputs"},
    "rollouts": {"config", "inputs", "model", "ranks", "reporting"},
    "targets": {"config", "data", "inputs", "reporting", "rollouts"},
    "step": {"config", "data", "inputs", "model", "ranks", "reporting", "rollouts", "targets"},
    "checks": {"config", "inputs", "model", "ranks", "rollouts", "step"},
    "checkpoint": {"config", "data", "inputs", "model", "ranks", "step"},
}


def upward(source: str, folder: str) -> list[str]:
    """Names the modules of rollout_sft that a file of `folder` must not import."""
    allowed = {folder, *LAYERS[folder]}
    found = []
    for node in ast.walk(_without_type_checking(ast.parse(source))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "rollout_sft":
            modules = [f"rollout_sft.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            root, _, below = module.partition(".")
            if root == "rollout_sft" and below.partition(".")[0] not in allowed:
                found.append(module)
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    kept = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    return ast.Module(body=kept, type_ignores=[])


@pytest.mark.parametrize("folder", sorted(LAYERS))
def test_a_folder_imports_only_the_layers_below_it(folder):
    files = sorted((ROOT / "rollout_sft" / folder).rglob("*.py"))
    assert files, folder
    found = {str(f.relative_to(ROOT)): bad for f in files if (bad := upward(f.read_text(), folder))}
    assert found == {}


def test_every_folder_of_rollout_sft_has_its_layer():
    folders = {p.parent.name for p in (ROOT / "rollout_sft").glob("*/__init__.py")}
    assert folders == set(LAYERS)


def test_the_layers_have_no_circle():
    placed: set[str] = set()
    while len(placed) < len(LAYERS):
        lowest = {folder for folder, below in LAYERS.items() if folder not in placed and below <= placed}
        assert lowest, f"a circle among {set(LAYERS) - placed}"
        placed |= lowest


def drawn_arrows(text: str) -> dict[str, set[str]]:
    """Returns, for each folder in the picture of a page, the folders to which its arrows point."""
    picture = re.sub(r"\[[^]]*\]", "", re.search(r"```mermaid\n(.*?)```", text, re.DOTALL)[1])
    arrows: dict[str, set[str]] = {folder: set() for folder in LAYERS}
    for start, ends in re.findall(r"^ *(\w+) --> (.*)$", picture, re.MULTILINE):
        if start in LAYERS:
            arrows[start] |= {end.strip() for end in ends.split("&")} & set(LAYERS)
    return arrows


def test_the_picture_of_the_layers_shows_what_each_may_import():
    arrows = drawn_arrows((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert sum(map(len, arrows.values())) > len(LAYERS)
    for folder, below in LAYERS.items():
        assert arrows[folder] <= below, folder
        reached, size = set(arrows[folder]), 0
        while size < len(reached):
            size = len(reached)
            reached |= set().union(*(arrows[one] for one in reached))
        assert below <= reached, folder


@pytest.mark.parametrize(
    ("folder", "source", "expected"),
    [
        ("ranks", "from rollout_sft.config.arguments import RolloutSFTConfig", ["rollout_sft.config.arguments"]),
        ("model", "def f():\n    import rollout_sft.step.loss", ["rollout_sft.step.loss"]),
        ("step", "from rollout_sft.trainer import RolloutSFTTrainer", ["rollout_sft.trainer"]),
        ("step", "from rollout_sft import RolloutSFTTrainer", ["rollout_sft.RolloutSFTTrainer"]),
        ("step", "from rollout_sft.model.forward import Inputs\nimport torch", []),
        ("targets", "if TYPE_CHECKING:\n    from rollout_sft.trainer import RolloutSFTTrainer", []),
    ],
)
def test_the_tests_above_can_fail(folder, source, expected):
    assert upward(source, folder) == expected
