"""Every promise of docs/contract.md points to tests, and these exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = (ROOT / "docs" / "contract.md").read_text()


def missing_tests(text):
    """Returns the pointers `tests/file.py::name` in the text that lead nowhere."""
    pointers = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    return [f"{path}::{name}" for path, name in pointers if not is_defined(ROOT / path, name)]


def is_defined(path, name):
    return path.exists() and re.search(rf"^(def {name}\(|class {name}\b|{name} = )", path.read_text(), re.M) is not None


def test_the_promises_are_numbered_and_each_points_to_a_test():
    sections = re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## )", CONTRACT, re.M | re.S)
    assert [int(number) for number, _ in sections] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(re.search(r"^- `tests/.*::", body, re.M) for _, body in sections)


def test_every_test_that_the_contract_names_exists():
    assert missing_tests(CONTRACT) == []


def test_the_test_above_can_fail():
    gone = "`tests/packsched/test_contract.py::test_gone` and `tests/gone.py::test_the_test_above_can_fail`"
    assert missing_tests(gone) == [
        "tests/packsched/test_contract.py::test_gone",
        "tests/gone.py::test_the_test_above_can_fail",
    ]
