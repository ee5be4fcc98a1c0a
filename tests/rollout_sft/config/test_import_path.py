"""What a configuration names by import path, and the one message when that fails."""

import re

import pytest

from rollout_sft.config.import_path import call_import_path, import_path, meant_import_path
from rollout_sft.config.sections import DataSpec, ModelSpec
from rollout_sft.data.loading import load_dataset
from rollout_sft.model.loading import load_tokenizer
from rollout_sft.reporting.callbacks import make_callbacks
from rollout_sft.targets.loading import make_target_builder
from tests.tiny import tiny_arguments

HERE = "tests.rollout_sft.config.test_import_path"
NUMBER = 5


class Namespace:
    @staticmethod
    def add(a, b):
        return a + b


def make_samples(*, tokenizer, split, size, seed, colour="red"):
    return [(tokenizer, split, size, seed, colour)]


def make_tokenizer():
    return "a tokenizer"


class Builder:
    """A builder that keeps what it was made with."""

    build = build_reference = score = None

    def __init__(self, tokenizer, config):
        self.made_with = (tokenizer, config)


def call(path, *arguments):
    return call_import_path(path, *arguments, key="section.key", takes="module:function")


def test_a_function_is_imported_and_called_with_the_arguments():
    assert call(f"{HERE}:Namespace.add", 2, 3) == 5
    assert call("math:hypot", 3, 4) == 5


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("adder", "; it takes module:function"),
        ("a b:c", "; it takes module:function"),
        ("no_such_module:f", "which cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{HERE}:subtract", "which cannot be imported: AttributeError"),
        (f"{HERE}:NUMBER", "a int; it takes module:function"),
        (f"{HERE}:Namespace.add", "which has the signature (a, b): missing a required argument"),
    ],
)
def test_what_cannot_be_imported_or_called_is_named_with_its_key(path, problem):
    with pytest.raises(ValueError, match=f"^section.key is {path!r}.*{re.escape(problem)}"):
        call(path)


def test_a_module_that_fails_while_it_is_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "fails_at_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"section\.key is 'fails_at_import:f'.* ZeroDivisionError") as caught:
        call("fails_at_import:f")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_error_of_the_called_function_is_left_as_it_is():
    with pytest.raises(TypeError, match="unsupported operand"):
        call(f"{HERE}:Namespace.add", 2, "x")


def test_a_source_gets_the_keys_of_its_section_and_its_arguments():
    spec = DataSpec(source=f"{HERE}:make_samples", split="eval", size=3, arguments={"colour": "blue"})
    assert load_dataset(spec, "tokens", seed=7) == [("tokens", "eval", 3, 7, "blue")]
    assert load_dataset(DataSpec(source=f"{HERE}:make_samples", seed=8), "tokens", seed=7) == [
        ("tokens", "train", None, 8, "red")
    ]


@pytest.mark.parametrize("arguments", [{"color": "blue"}, {"split": "eval"}])
def test_an_argument_that_a_source_does_not_take_is_refused_by_key(arguments):
    spec = DataSpec(source=f"{HERE}:make_samples", arguments=arguments)
    with pytest.raises(ValueError, match=rf"^data\.eval\.(source is|arguments has).*{next(iter(arguments))}"):
        load_dataset(spec, "tokens", seed=7, key="data.eval")


def test_arguments_are_for_import_paths_alone():
    with pytest.raises(ValueError, match=r"data\.train\.arguments is .*, but data\.train\.source is 'x\.jsonl'"):
        load_dataset(DataSpec(source="x.jsonl", arguments={"colour": "red"}), "tokens", seed=7)


def test_a_tokenizer_is_made_by_the_function_that_is_named():
    spec = ModelSpec(config={"model_type": "qwen3"}, tokenizer_name_or_path=f"{HERE}:make_tokenizer")
    assert load_tokenizer(spec) == "a tokenizer"
    with pytest.raises(ValueError, match=r"^model\.tokenizer_name_or_path is 'nowhere:f'.*cannot be imported"):
        load_tokenizer(ModelSpec(model_name_or_path="m", tokenizer_name_or_path="nowhere:f"))


def test_a_point_instead_of_the_colon_is_found_before_a_hub_is_asked():
    spec = ModelSpec(config={"model_type": "qwen3"}, tokenizer_name_or_path="examples.digits.tokenizer.build")
    with pytest.raises(ValueError, match=r"hub name, or module:.* Write examples\.digits\.tokenizer:build\.$"):
        load_tokenizer(spec)
    source = DataSpec(source="examples.digits.data.load_digits")
    with pytest.raises(ValueError, match=r"^data\.train\.source is .* Write examples\.digits\.data:load_digits\.$"):
        load_dataset(source, None, key="data.train", seed=0)
    with pytest.raises(
        ValueError, match=r"^training\.callbacks is .* Write examples\.digits\.pictures:DrawCanvases\.$"
    ):
        import_path("examples.digits.pictures.DrawCanvases", key="training.callbacks", takes="a class")
    assert meant_import_path("no_such_module_here.build") is None
    assert meant_import_path("Qwen2.5-0.5B") is None


@pytest.mark.parametrize("part", [{"split": "validation"}, {"name": "main"}])
def test_a_part_of_a_file_is_refused_by_key(part):
    (key,) = part
    spec = DataSpec(source=["a.jsonl", "b.csv"], **part)
    with pytest.raises(ValueError, match=rf"^data\.train\.{key} is .*a file has one part alone.*Remove {key}"):
        load_dataset(spec, None, key="data.train", seed=0)


def test_a_target_builder_gets_the_tokenizer_and_the_configuration(tmp_path):
    config = tiny_arguments(tmp_path, target_builder=f"{HERE}:Builder")
    assert make_target_builder("tokens", config).made_with == ("tokens", config)
    config.target_builder = "object"
    with pytest.raises(ValueError, match=r"^rollout_matching\.target_builder is 'object'; it takes objects, or mod"):
        make_target_builder("tokens", config)


def test_a_callback_that_is_no_callback_is_refused_by_key():
    message = rf"^training\.callbacks names '{HERE}:Namespace', which is not a TrainerCallback class; it takes a list"
    with pytest.raises(ValueError, match=message):
        list(make_callbacks([f"{HERE}:Namespace"], trainer=None))
