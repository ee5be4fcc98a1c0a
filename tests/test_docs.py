"""The pages link to files that exist, their Python runs and prints what they show, and every error has its entry."""

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def dead_links(page: Path, text: str) -> list[str]:
    """Relative links and pictures of a page that lead nowhere."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    return [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page):
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


def test_the_test_above_can_fail():
    text = "[here](README.md#top) [gone](docs/gone.md) ![gone](gone.png) [outside](https://example.org/x)"
    assert dead_links(ROOT / "README.md", text) == ["docs/gone.md", "gone.png"]


def test_every_decision_has_a_number_of_its_own():
    pages = sorted(ROOT.glob("docs/decisions/*.md"))
    numbers = [int(page.name.partition("-")[0]) for page in pages]
    titles = [page.read_text(encoding="utf-8").partition("\n")[0] for page in pages]
    assert len(set(numbers)) == len(pages) > 20
    assert [int(re.match(r"# (\d+)\. ", title)[1]) for title in titles] == numbers


def swallowed_lists(text: str) -> list[int]:
    """The lines of list items that follow a paragraph without an empty line; the site shows them as its text."""
    found, block, fenced = [], "", False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            block, fenced = "", not fenced
        elif not line.strip() or line.startswith("#"):
            block = ""
        elif not fenced:
            item = re.match(r"\s*([-*+]|\d+\.) ", line)
            if item and block == "text":
                found.append(number)
            block = block or ("list" if item else "text")
    return found


def test_every_list_begins_after_an_empty_line():
    lists = {str(page.relative_to(ROOT)): swallowed_lists(page.read_text(encoding="utf-8")) for page in PAGES}
    assert {page: lines for page, lines in lists.items() if lines} == {}
    assert swallowed_lists("# Title\n- one\n  more\n\ntext:\n- two\n\n```\ncode\n- three\n```\n") == [6]


def missing_files(text: str) -> list[str]:
    """Python files named in backquotes, such as `step/loss.py`, that neither package nor the tests have."""
    files = [
        f"/{path.relative_to(ROOT)}"
        for top in ("packsched", "rollout_sft", "tests")
        for path in ROOT.glob(f"{top}/**/*.py")
    ]
    return [
        name for name in re.findall(r"`([\w/]+\.py)`", text) if not any(file.endswith(f"/{name}") for file in files)
    ]


def test_every_file_that_the_architecture_names_exists():
    assert missing_files((ROOT / "docs/architecture.md").read_text(encoding="utf-8")) == []
    assert missing_files("see `step/loss.py`, `streaming.py` and `step/gone.py`") == ["step/gone.py"]


PYTHON = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```python\n(.*?)```(?:\n\n```\n(.*?)```)?", re.DOTALL)


def snippets(text: str) -> list[tuple[str, str]]:
    """The Python of a page that runs, each with the output that the page shows below it."""
    return [(code, shown) for not_run, code, shown in PYTHON.findall(text) if not not_run]


def printed(code: str, names: dict) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "page", "exec"), names)
    return out.getvalue()


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "README.md" and snippets(page.read_text(encoding="utf-8"))],
    ids=lambda page: page.name,
)
def test_the_python_of_a_page_runs_and_prints_what_the_page_shows(page):
    names: dict = {"__name__": "page"}
    for code, shown in snippets(page.read_text(encoding="utf-8")):
        out = printed(code, names)
        if shown:
            assert out == shown


def test_a_page_that_shows_another_output_would_be_found():
    [(code, shown)] = snippets("```python\nprint(1)\n```\n\n```\n2\n```\n")
    assert printed(code, {}) == "1\n" != shown


def test_every_error_class_has_an_entry_on_the_page_of_errors():
    entries = set(re.findall(r"^### `(\w+)`", (ROOT / "docs/errors.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert entries == set(errors())


ASSERTED = re.compile(r"""raises\(\s*(\([^)]*\)|[\w.]+),\s*match=|["'](\w+): \w""")
"""`pytest.raises(Kind, match=...)`, and the text `"Kind: message"` in which tests of several ranks report an error."""


def asserted_kinds(text: str) -> set[str]:
    """The error classes whose text a test compares."""
    return {kind for names in ASSERTED.findall(text) for kind in re.findall(r"\w+", " ".join(names))}


def test_a_test_compares_the_text_of_every_error_class():
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    asserted = set().union(*(asserted_kinds(path.read_text(encoding="utf-8")) for path in files))
    assert [name for name in errors() if name not in asserted] == []


def test_an_error_class_without_a_test_of_its_text_would_be_found():
    text = """
    with pytest.raises(AError): ...
    with pytest.raises(BError, match="cause"): ...
    with pytest.raises(
        (CError, m.DError), match="cause"
    ): ...
    assert other.startswith(f"EError: rank 1 failed")
    """
    assert asserted_kinds(text) == {"BError", "CError", "m", "DError", "EError"}


def errors() -> list[str]:
    """The error classes of both packages that a user can meet."""
    found = set()
    for package in ("packsched", "rollout_sft"):
        for info in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if info.name in ("rollout_sft.rollouts.vllm.worker", "packsched.__main__"):
                continue  # runs inside of vLLM alone
            for name, value in vars(importlib.import_module(info.name)).items():
                ours = inspect.isclass(value) and issubclass(value, Exception) and value.__module__.startswith(package)
                if ours and not name.startswith("_"):
                    found.add(name)
    return sorted(found - {"OutOfNodesError"})  # caught where the planner gives up
