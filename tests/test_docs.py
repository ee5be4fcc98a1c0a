"""The pages link to files that exist."""

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
