"""The versions that are declared, pinned, tested and documented are the same ones."""

import re
import tomllib
from pathlib import Path

import pytest

from rollout_sft.config.releases import TESTED

ROOT = Path(__file__).resolve().parents[2]
LOWEST = {package: lowest for package, (lowest, _) in TESTED.items()}
NEWEST = {package: newest for package, (_, newest) in TESTED.items()}


def pinned(name):
    """The tested packages of a constraints file."""
    pins = re.findall(r"^([\w-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return {package: version for package, version in pins if package in TESTED}


def test_each_environment_has_the_versions_that_count_as_tested():
    assert pinned("constraints-lowest.txt") == LOWEST
    assert pinned("constraints-newest.txt") == NEWEST


def test_the_declared_ranges_begin_with_the_lowest_tested_versions():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    bounds = {}
    for requirement in (r for requirements in extras.values() for r in requirements):
        package, _, bound = requirement.partition(",")[0].partition(">=")
        if package in TESTED:
            bounds.setdefault(package, set()).add(bound)
    padded = {package: {f"{b}{'.0' * (2 - b.count('.'))}" for b in found} for package, found in bounds.items()}
    assert padded == {package: {version} for package, version in LOWEST.items()}


@pytest.mark.parametrize("package", TESTED)
def test_the_page_on_versions_has_a_row_for_each_package(package):
    page = (ROOT / "docs/versions.md").read_text(encoding="utf-8")
    assert f"| {package} | {LOWEST[package]} | {pinned('constraints.txt')[package]} | {NEWEST[package]} |" in page
