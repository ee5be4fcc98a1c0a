"""A checkpoint that was damaged anywhere is refused by a documented error, or nothing that is read has changed."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_sft.checkpoint.manifest import FINISHED, mark_finished, read_finished
from tests.fuzz.cases import cases
from tests.fuzz.values import MUTATIONS, VALUES, mutated
from tests.limits import refusal

pytestmark = pytest.mark.fuzz

WITH = {"settings": {"training.seed": 1}, "how_long": {"training.max_steps": 5}, "versions": {"torch": "2"}}
FILES = {"model.safetensors": bytes(range(256)) * 40, "optimizer.pt": b"a" * 5000 + b"b" * 5000, "parts/empty": b""}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoint-2"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    mark_finished(folder, WITH)
    return folder


@pytest.fixture
def damage(saved):
    """Gives a damaged copy of the checkpoint to a function; returns the message, or None where it was taken."""

    def read_copy(change):
        copy = saved.parent / "checkpoint-4"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(saved, copy)
        change(copy)
        found = []
        return refusal(lambda: found.append(read_finished(copy))), (found or [None])[-1]

    return read_copy


@cases(600)
@given(
    name=st.sampled_from([*FILES]),
    way=st.sampled_from(["flip", "cut", "grow", "swap", "remove"]),
    at=st.integers(0, 2**16),
    bit=st.integers(0, 7),
)
def test_a_damaged_checkpoint_is_refused_or_is_what_was_saved(damage, name, way, at, bit):
    def change(folder):
        data = bytearray(FILES[name])
        place = at % max(1, len(data))
        if way == "flip" and data:
            data[place] ^= 1 << bit
        elif way == "cut":
            del data[place:]
        elif way == "grow":
            data += bytes(at % 9)
        else:
            data = data[place:] + data[:place]
        (folder / name).write_bytes(data)
        if way == "remove":
            (folder / name).unlink()
        same.append(way != "remove" and bytes(data) == FILES[name])

    same = []
    message, read = damage(change)
    if same[-1]:
        assert (message, read) == (None, WITH)
    else:
        assert f"is damaged: {name} " in message
        assert message.endswith("checkpoint-2.")


@cases(900)
@given(mutations=MUTATIONS)
def test_a_manifest_with_damaged_text_is_refused_or_read(damage, mutations):
    def change(folder):
        text = mutated((folder / FINISHED).read_text(), mutations)
        (folder / FINISHED).write_bytes(text.encode("utf-8", "surrogatepass"))

    damage(change)


@cases(500)
@given(files=VALUES, trained_with=VALUES, version=st.sampled_from([1, 2]) | VALUES)
def test_a_manifest_with_any_values_is_refused(damage, files, trained_with, version):
    text = json.dumps({"format": version, "files": files, "trained_with": trained_with})
    message, _ = damage(lambda folder: (folder / FINISHED).write_text(text))
    assert message is not None
