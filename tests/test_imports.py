"""Imports run one way: packsched knows no framework, rollout_sft knows packsched's public names only.

`packsched/torch.py` alone imports torch, and no file of packsched imports it.

Neither imports benchmarks or examples; tests may import examples, which they run on.

Sources are read, not run, so an import inside a function counts as well.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import packsched

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "packsched": {"benchmarks", "examples"},
    "rollout_sft": {"benchmarks", "examples"},
    "examples": {"benchmarks", "tests"},
    "tests": {"benchmarks"},
}
LIGHT = {*sys.stdlib_module_names, "numpy", "packsched"}
FOR_TORCH = "packsched/torch.py"
# What single files of packsched may import besides: anywhere, or inside functions only.
ANYWHERE = {
    FOR_TORCH: {"torch"},
    "packsched/commands.py": {"typer", "rich"},
    "packsched/terminal.py": {"rich"},
    "packsched/plots.py": {"matplotlib"},
}
INSIDE_FUNCTIONS = {
    "packsched/selection.py": {"binpacking"},
    "packsched/traces.py": {"pyarrow"},
    "packsched/lengths.py": {"transformers", "datasets"},
}


def violations(source: str, package: str) -> list[str]:
    """Names what a file ("packsched/torch.py") or any file of a folder ("packsched") must not import."""
    light, late, package = (
        LIGHT | ANYWHERE.get(package, set()),
        INSIDE_FUNCTIONS.get(package, ()),
        package.split("/")[0],
    )
    tree = ast.parse(source)
    at_import = {node for statement in tree.body for node in _run_at_import(statement)}
    found = []
    for node in ast.walk(tree):
        for module, name in _imported(node):
            root = module.partition(".")[0]
            whole = f"{module}.{name}" if name else module
            if root in FORBIDDEN.get(package, set()):
                found.append(whole)
            elif package == "packsched" and root not in light:
                if root not in late or node in at_import:
                    found.append(whole)
            elif _is_private(package, module, name):
                found.append(whole)
    return found


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _run_at_import(child)


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields (module, name) of an import, an `import_module("...")`, or a use of `packsched.name`."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((node.module or "", alias.name) for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in {"import_module", "__import__"}:
            yield str(node.args[0].value), ""
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "packsched":
        yield "packsched", node.attr


def _is_private(package: str, module: str, name: str) -> bool:
    """Says whether an import of packsched is one that `package` must leave alone."""
    if package == "packsched":
        return f"{module}.{name}.".startswith("packsched.torch.")
    public = module == "packsched" and (not name or name in packsched.__all__)
    return package == "rollout_sft" and module.partition(".")[0] == "packsched" and not public


@pytest.mark.parametrize("folder", ["packsched", "rollout_sft", "examples", "tests"])
def test_no_file_imports_what_its_folder_must_not(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"no sources under {ROOT / folder}"
    names = {str(f.relative_to(ROOT)): f.read_text() for f in files}
    found = {n: bad for n, text in names.items() if (bad := violations(text, n))}
    assert found == {}


@pytest.mark.parametrize(
    ("package", "source", "expected"),
    [
        ("packsched", "import torch", ["torch"]),
        ("packsched", "def f():\n    from torch.nn import Linear", ["torch.nn.Linear"]),
        ("packsched", "import importlib\nimportlib.import_module('torch')", ["torch"]),
        ("packsched", "if True:\n    import rollout_sft.trainer", ["rollout_sft.trainer"]),
        ("packsched", "import binpacking", ["binpacking"]),
        ("packsched", "class A:\n    import binpacking", ["binpacking"]),
        ("packsched/selection.py", "import binpacking", ["binpacking"]),
        ("packsched/selection.py", "def f():\n    import binpacking", []),
        ("packsched", "def f():\n    import binpacking", ["binpacking"]),
        ("packsched", "import json, numpy.typing\nfrom packsched.errors import PackingError", []),
        ("rollout_sft", "from packsched.selection import select", ["packsched.selection.select"]),
        ("rollout_sft", "from packsched import selection", ["packsched.selection"]),
        ("rollout_sft", "import packsched.layout", ["packsched.layout"]),
        ("rollout_sft", "import packsched\npacksched.arguments", ["packsched.arguments"]),
        ("rollout_sft", "import packsched\npacksched.select([1], 2)", []),
        ("rollout_sft", "import torch\nfrom packsched import select, PackLayout", []),
        ("rollout_sft", "from benchmarks import replay", ["benchmarks.replay"]),
        ("packsched", "import packsched.torch", ["packsched.torch"]),
        ("packsched", "from packsched import torch", ["packsched.torch"]),
        ("packsched", "from packsched.torch import PackCollator", ["packsched.torch.PackCollator"]),
        (FOR_TORCH, "import torch, numpy\nfrom torch import nn", []),
        (FOR_TORCH, "import transformers", ["transformers"]),
        ("packsched", "import examples.digits", ["examples.digits"]),
        ("rollout_sft", "def f():\n    import examples.digits", ["examples.digits"]),
        ("examples", "from tests.tiny import tiny_config", ["tests.tiny.tiny_config"]),
        ("tests", "from benchmarks import replay", ["benchmarks.replay"]),
        ("tests", "import examples.digits", []),
        ("tests", "import torch\nfrom packsched.errors import PackingError", []),
    ],
)
def test_the_test_above_can_fail(package, source, expected):
    assert violations(source, package) == expected
