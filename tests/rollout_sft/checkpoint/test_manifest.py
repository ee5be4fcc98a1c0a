"""A checkpoint's files are those that were saved, or the one that is not is named."""

import json
import shutil
import zipfile
import zlib

import numpy as np
import pytest
import torch

from rollout_sft.checkpoint.atomic_files import checksums, is_unchanged, write_atomically
from rollout_sft.checkpoint.manifest import (
    FINISHED,
    DamagedCheckpointError,
    last_finished_checkpoint,
    mark_finished,
    read_finished,
)

WITH = {"settings": {"training.seed": 1}, "how_long": {}, "versions": {}}
BLOCK = 2**20


def whole(**changes):
    """A manifest with some parts changed."""
    return json.dumps({"format": 1, "files": {}, "trained_with": WITH, **changes})


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
        ('{"format": 1, "files": {"a": {}}, "trained_with": {}}', "its manifest finished cannot be read"),
        ("[" * 100_000, "its manifest finished cannot be read .RecursionError"),
        (whole(trained_with={}), "its manifest finished cannot be read .KeyError: 'settings'"),
        (whole(trained_with={**WITH, "settings": None}), "its manifest finished cannot be read .AttributeError"),
        (whole(trained_with={**WITH, "how_long": "x"}), "its manifest finished cannot be read .AttributeError"),
        (whole(files={"model.bin": {"size": 2560, "checksum": 5}}), "cannot be read .TypeError: size 2560, checksum 5"),
        (whole(files={"a" * 5000: {"size": 1, "checksum": ""}}), "names a file that cannot be read"),
        (whole(files={"/dev/null": {"size": 0, "checksum": ""}}), "names a file that cannot be read"),
        (whole(files={"a\0": {"size": 0, "checksum": ""}}), "a.* is missing"),
        (whole(format="x" * 100_000), "has format 'xxx"),
        (whole(format=2), "has format 2, and this version reads format 1"),
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


def test_blocks_that_change_their_places_change_the_checksum(tmp_path):
    one, other, short, zeros = (tmp_path / name for name in ("one", "other", "short", "zeros"))
    one.write_bytes(b"a" * BLOCK + b"b" * BLOCK + b"c")
    other.write_bytes(b"b" * BLOCK + b"a" * BLOCK + b"c")
    short.write_bytes(b"a" * BLOCK + b"b" * BLOCK)
    zeros.write_bytes(bytes(65 * BLOCK))
    found = checksums(tmp_path, {path.name: path.stat().st_size for path in (one, other, short, zeros)})
    assert len(set(found.values())) == 4
    assert all(is_unchanged(tmp_path / name, checksum) for name, checksum in found.items())


@pytest.mark.parametrize("place", [0.3, 0.9, "directory", "end"])
def test_a_flipped_bit_in_an_archive_is_found_by_its_own_checksums(tmp_path, place):
    path = tmp_path / "optimizer.pt"
    torch.save({str(i): torch.ones(BLOCK // 4) for i in range(7)}, path)
    size = path.stat().st_size
    checksum = checksums(tmp_path, {path.name: size})[path.name]
    with zipfile.ZipFile(path) as archive:
        directory = path.read_bytes()[archive.start_dir :]
    assert checksum == f"directory {zlib.crc32(directory):08x}", "what earlier versions wrote for large archives"
    assert is_unchanged(path, checksum)
    with path.open("r+b") as file:
        file.seek({"directory": size - 200, "end": size - 10}.get(place) or int(place * size))
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    assert not is_unchanged(path, checksum)


def test_checksums_of_earlier_versions_are_still_compared(tmp_path):
    path = tmp_path / "optimizer.pt"
    torch.save(torch.ones(BLOCK), path)
    data = path.read_bytes()
    data += bytes(-len(data) % 8)
    blocks = [np.frombuffer(data[at : at + 2**18], "<u8").sum(dtype="<u8") for at in range(0, len(data), 2**18)]
    sums = f"sums {zlib.crc32(np.array(blocks).tobytes()):08x}"
    assert is_unchanged(path, sums)
    with path.open("r+b") as file:
        file.seek(BLOCK)
        file.write(b"x")
    assert not is_unchanged(path, sums)


def test_a_file_that_only_ends_like_an_archive_is_read_whole(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(BLOCK) + b"PK\x05\x06" + b"\xff" * 18)
    checksum = checksums(tmp_path, {path.name: BLOCK + 22})[path.name]
    assert is_unchanged(path, checksum)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert not is_unchanged(path, checksum)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "summary.json"
    write_atomically(path, json.dumps({"a": 1}))
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
