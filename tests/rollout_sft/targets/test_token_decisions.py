"""The tool for target builders: text that an expert would write -> targets for tokens."""

import doctest
import sys

import pytest

from rollout_sft.targets import Speller, token_decisions
from tests.rollout_sft.targets.tokenizers import MAKERS, tokenizer_named


def test_the_example_in_the_docstring_holds():
    result = doctest.testmod(sys.modules[token_decisions.__module__])
    assert result.attempted > 5
    assert result.failed == 0


def decided(name, own, asked, wanted, **options):
    """Text of each decided token and of its target."""
    speller = Speller(tokenizer_named(name))
    answer = speller.read(speller.encode(own))
    decisions = token_decisions(speller, answer, asked, wanted, **options)
    text_of = lambda token: speller.spell([token])[0]  # noqa: E731
    return [(text_of(answer.ids[i]), text_of(token)) for i, token in decisions.items()]


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "digits"])
def test_a_right_answer_is_confirmed_to_its_end(name):
    own = "the cat-sat. the end"
    pairs = decided(name, own, (4, 11), "cat-sat", then=". the end")
    assert all(mine == wanted for mine, wanted in pairs)
    assert "cat-sat" in "".join(wanted for _, wanted in pairs)


def test_the_first_token_that_differs_is_the_last_target():
    assert decided("characters", "x=135;", (2, 5), "145", then=";") == [("1", "1"), ("3", "4")]


def test_a_short_answer_learns_to_go_on_and_a_long_one_to_stop():
    assert decided("characters", "x=1;", (2, 3), "12", then=";") == [("1", "1"), (";", "2")]
    assert decided("characters", "x=12;", (2, 4), "1", then=";") == [("1", "1"), ("2", ";")]


def test_a_token_that_begins_in_unknown_text_is_no_target():
    asked = {"own": "[1]}, {", "asked": (4, 5), "wanted": "]"}
    assert decided("straddling", **asked) == [("]}, ", "]")]
    assert decided("straddling", **asked, known_from=2) == [("]}, ", "]")]
    assert decided("straddling", **asked, known_from=3) == []
