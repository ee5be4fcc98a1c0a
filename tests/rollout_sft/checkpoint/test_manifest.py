"""A checkpoint's files are those that were saved, or the one that is not is named."""

import json
import os
import shutil

import pytest

from rollout_sft.checkpoint.atomic_files import write_atomically
from rollout_sft.checkpoint.manifest import (
    FINISHED,
    FORMAT,
    DamagedCheckpointError,
    last_finished_checkpoint,
    mark_finished,
    read_finished,
    rotate,
)

WITH = {"settings": {"training.seed": 1}, "how_long": {}, "versions": {}}
BLOCK = 2**20


def whole(**changes):
    """A manifest with some parts changed."""
    return json.dumps({"format": FORMAT, "files": {}, "trained_with": WITH, **changes})


@pytest.fixture
def checkpoint(tmp_path):
    """Two finished checkpoints; the folder of the later one."""
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "parts").mkdir(parents=True)
        (folder / "model.bin").write_bytes(bytes(range(256)) * 10)
        (folder / "parts" / "empty").touch()
        mark_finished(folder, WITH)
    return folder


def test_a_whole_checkpoint_gives_back_what_it_was_trained_with(checkpoint):
    assert read_finished(checkpoint) == WITH
    assert read_finished(checkpoint, contents=False) == WITH


@pytest.mark.parametrize("contents", [True, False])
def test_a_missing_or_cut_file_is_named_with_the_last_good_checkpoint(checkpoint, contents):
    (checkpoint / "model.bin").write_bytes(bytes(2559))
    with pytest.raises(DamagedCheckpointError, match=r"model\.bin has 2559 bytes and was saved with 2560\. .*-2\.$"):
        read_finished(checkpoint, contents=contents)
    (checkpoint / "model.bin").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-4 is damaged: model\.bin is missing\."):
        read_finished(checkpoint, contents=contents)


@pytest.mark.parametrize("place", [0, 1000, 2559])
def test_a_flipped_bit_is_found_wherever_it_is(checkpoint, place):
    data = bytearray((checkpoint / "model.bin").read_bytes())
    data[place] ^= 4
    (checkpoint / "model.bin").write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=r"model\.bin was changed after it was saved"):
        read_finished(checkpoint)


def test_the_last_good_checkpoint_is_one_that_is_whole(checkpoint):
    shutil.copytree(checkpoint.parent / "checkpoint-2", checkpoint.parent / "checkpoint-1")
    (checkpoint.parent / "checkpoint-2" / "parts" / "empty").write_text("x")
    (checkpoint / "model.bin").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"The last good checkpoint of this run is .*checkpoint-1\.$"):
        read_finished(checkpoint)
    (checkpoint.parent / "checkpoint-1" / "model.bin").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"This run has no other finished checkpoint that is undamaged\.$"):
        read_finished(checkpoint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its manifest finished cannot be read"),
        ("[]", "its manifest finished cannot be read"),
        (whole(files={"a": {}}, trained_with={}), "its manifest finished cannot be read"),
        ("[" * 100_000, "its manifest finished cannot be read .RecursionError"),
        (whole(trained_with={}), "its manifest finished cannot be read .KeyError: 'settings'"),
        (whole(trained_with={**WITH, "settings": None}), "its manifest finished cannot be read .AttributeError"),
        (whole(trained_with={**WITH, "how_long": "x"}), "its manifest finished cannot be read .AttributeError"),
        (whole(files={"model.bin": {"size": 2560, "checksum": 5}}), "cannot be read .TypeError: size 2560, checksum 5"),
        (whole(files={"a" * 5000: {"size": 1, "checksum": ""}}), "names a file that cannot be read"),
        (whole(files={"/dev/null": {"size": 0, "checksum": ""}}), "names a file that cannot be read"),
        (whole(files={"a\0": {"size": 0, "checksum": ""}}), "a.* is missing"),
        (whole(format="x" * 100_000), "has format 'xxx"),
        (whole(format=4), "has format 4, and this version reads format 3"),
    ],
)
def test_a_damaged_manifest_is_called_that(checkpoint, text, message):
    (checkpoint / FINISHED).write_text(text)
    with pytest.raises(DamagedCheckpointError, match=message) as raised:
        read_finished(checkpoint)
    assert len(str(raised.value)) < 1000
    assert str(raised.value).endswith("checkpoint-2.")


def test_folders_with_other_digits_are_no_checkpoints(checkpoint):
    for step in ("\u00b2", "\u0663", "04x"):
        (checkpoint.parent / f"checkpoint-{step}").mkdir()
        (checkpoint.parent / f"checkpoint-{step}" / FINISHED).touch()
    assert last_finished_checkpoint(checkpoint.parent) == str(checkpoint)


def test_a_checkpoint_of_an_earlier_version_is_taken_with_a_warning(checkpoint, caplog):
    (checkpoint / FINISHED).write_text("")
    assert read_finished(checkpoint) is None
    assert "has no manifest" in caplog.text


@pytest.mark.parametrize("one", [0, 4096, BLOCK])
def test_pages_and_blocks_that_change_their_places_are_found(checkpoint, one):
    parts = [bytes([at % 251]) * 4096 for at in range(3 * BLOCK // 4096)]
    (checkpoint / "model.bin").write_bytes(b"".join(parts))
    mark_finished(checkpoint, WITH)
    assert read_finished(checkpoint) == WITH
    here, there = one // 4096, BLOCK // 4096 + 1
    parts[here], parts[there] = parts[there], parts[here]
    (checkpoint / "model.bin").write_bytes(b"".join(parts))
    with pytest.raises(DamagedCheckpointError, match=r"model\.bin was changed after it was saved"):
        read_finished(checkpoint)


@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_of_an_earlier_format_is_answered_with_what_to_do(checkpoint, caplog, version):
    (checkpoint / FINISHED).write_text(whole(format=version))
    with pytest.raises(ValueError, match=f"has format {version}, which lacks settings that format 3 compares. Resume"):
        read_finished(checkpoint)
    (checkpoint / FINISHED).write_text("")
    assert read_finished(checkpoint) is None


def lay(folder, *steps, unfinished=()):
    """Checkpoints of these steps; a later one in the list has an earlier time."""
    for age, step in enumerate((*steps, *unfinished)):
        path = folder / f"checkpoint-{step}"
        path.mkdir()
        if step not in unfinished:
            (path / FINISHED).touch()
        os.utime(path, (1e9 - age, 1e9 - age))


@pytest.mark.parametrize(
    ("steps", "unfinished", "step", "best", "limit", "left"),
    [
        ([2, 4, 6], [], 6, None, 1, [6]),  # the oldest folder has the latest time
        ([6, 4, 2], [], 6, None, 2, [4, 6]),
        ([2, 4, 6], [], 6, 2, 1, [2, 6]),
        ([2, 4, 6], [], 6, 2, 2, [2, 6]),
        ([2, 4, 6], [], 6, 4, 3, [2, 4, 6]),
        ([2, 4, 6, 10], [], 10, None, 2, [6, 10]),  # 10 comes after 6
        ([2, 4, 6, 8], [], 4, None, 2, [2, 4]),  # 6 and 8 are left over from before
        ([100], [2], 2, None, 1, [2]),
        ([2, 6], [4], 6, None, 2, [2, 6]),
        ([2, 4, 6], [], 6, None, None, [2, 4, 6]),
        ([2, 4, 6], [], 4, None, None, [2, 4, 6]),
        ([2, 4, 6], [], 6, None, 0, [2, 4, 6]),
    ],
)
def test_checkpoints_rotate_by_step(tmp_path, steps, unfinished, step, best, limit, left):
    lay(tmp_path, *steps, unfinished=unfinished)
    (tmp_path / "checkpoint-mine").mkdir()
    (tmp_path / "checkpoint-3").write_text("a file")
    rotate(tmp_path, limit, step=step, best_step=best)
    found = sorted(int(path.name[11:]) for path in tmp_path.glob("checkpoint-*") if path.name[11:].isdigit())
    assert found == sorted([3, *left])
    finished = [at for at in left if (tmp_path / f"checkpoint-{at}" / FINISHED).is_file()]
    assert finished == [at for at in left if at <= step and at not in unfinished]
    assert (tmp_path / "checkpoint-mine").is_dir()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "summary.json"
    write_atomically(path, json.dumps({"a": 1}))
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
