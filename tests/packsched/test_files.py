"""Reading and writing name the file that failed, and no control character gets through."""

import os
import sys
import unicodedata

import pytest

from packsched.files import (
    DuplicateNameError,
    FileError,
    check_unique,
    one_line,
    printable,
    refusing,
    unique_keys,
    write_file,
)


def test_every_character_that_a_terminal_may_obey_is_escaped():
    for code in range(sys.maxunicode + 1):
        sign = chr(code)
        if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            assert printable(sign).isascii(), hex(code)
            assert len(printable(sign)) > 1
    assert printable("a\n\tb", keep="\n") == "a\n\\tb"
    assert printable("é ü 漢 🙂") == "é ü 漢 🙂"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(13, "Permission denied"), "a.npy: Permission denied."),
        (ValueError("two\n  lines"), "a.npy: two lines"),
        (MemoryError(), "a.npy: MemoryError"),
        (RecursionError("x" * 1000), "a.npy: " + "x" * 397 + "..."),
        (FileError("b.npy: named already"), "b.npy: named already"),
    ],
)
def test_any_error_of_a_reader_names_the_file(error, says):
    with pytest.raises(FileError) as caught, refusing("a.npy"):
        raise error
    assert str(caught.value) == says


def test_an_error_without_a_message_is_named_by_its_type():
    assert one_line(KeyError()) == "KeyError"


def test_names_that_are_given_twice_are_refused():
    check_unique(["a", "b"], "column")
    assert unique_keys([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    with pytest.raises(DuplicateNameError, match=r"^the key 'a' is given twice; keep one\.$"):
        unique_keys([("a", 1), ("b", 2), ("a", 1)])


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_file(path, b"old")
    assert path.read_bytes() == b"old"

    def fails(source, target):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(FileError, match=rf"^{path}: cannot be written: Read-only file system\.$"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    write_file(tmp_path.__class__(os.devnull), b"a device is written directly")
