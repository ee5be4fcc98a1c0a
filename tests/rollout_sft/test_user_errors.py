"""What a command prints when it ends with an error: the message alone, or the traceback where that is what helps."""

import json

import pytest

from packsched import OversizedSegmentError, PackingError, select
from rollout_sft.config.import_path import import_path
from rollout_sft.ranks.distributed import PeerError
from rollout_sft.reporting.pages import print_page
from rollout_sft.targets.notes import naming
from rollout_sft.user_errors import is_for_user, message_alone


def raised(work):
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def ended(work, config="none.yaml"):
    with pytest.raises(SystemExit) as exit, message_alone(config):
        work()
    assert exit.value.code == 2


def wrong_import():
    import_path("nowhere:name", key="training.callbacks", takes="a list")


def peer():
    raise PeerError("rank 1 failed, so rank 0 stops too. ValueError: line 3 is bad.\nin step 4 on rank 1")


def test_errors_of_this_project_are_for_the_user_and_all_others_are_not():
    assert is_for_user(raised(wrong_import))
    assert is_for_user(raised(lambda: select([9], 4)))
    assert isinstance(raised(lambda: select([9], 4)), OversizedSegmentError)
    assert not is_for_user(raised(lambda: int("x"))), "raised in the user's code"
    assert not is_for_user(raised(lambda: json.loads("{"))), "raised in a library"
    assert not is_for_user(raised(lambda: {}["key"]))


def test_the_message_is_all_that_is_printed(capsys):
    ended(wrong_import)
    printed = capsys.readouterr().err
    assert printed.startswith("error: training.callbacks is 'nowhere:name', which cannot be imported: ModuleNotFound")
    assert printed.count("\n") == 1


def test_notes_say_where_it_happened(capsys):
    def oversized():
        error = raised(lambda: select([9], 4))
        error.add_note("in step 3 on rank 0")
        raise error

    ended(oversized)
    assert capsys.readouterr().err.splitlines()[1:] == ["in step 3 on rank 0"]


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError), message_alone("none.yaml"):
        {}["key"]


def test_an_error_of_the_users_code_says_above_its_traceback_where_it_happened(capsys):
    with pytest.raises(KeyError), message_alone("none.yaml"), naming(object(), {"id": "a1", "answr": "4"}):
        {}["answer"]
    assert capsys.readouterr().err.splitlines() == [
        "error: KeyError: 'answer'",
        "while the target builder builtins:object had sample 'a1' with id, answr",
    ]


def test_debug_brings_the_traceback_back(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("training: {log_level: debug}")
    with pytest.raises(ValueError, match="nowhere:name"), message_alone(config):
        wrong_import()
    config.write_text("training: {log_level: info}")
    ended(wrong_import, config)


def test_a_rank_that_another_one_stopped_says_only_that(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    ended(peer)
    assert capsys.readouterr().err == "[rank 0] error: rank 1 failed, so rank 0 stops too.\n"
    report = json.loads((tmp_path / "error.json").read_text())["message"]
    assert "line 3 is bad" in report["message"], "the launcher's report names the cause, whichever rank it shows"
    assert report["extraInfo"]["timestamp"].isdigit()


def test_no_message_and_no_page_prints_a_raw_control_character(capsys, tmp_path):
    with pytest.raises(SystemExit), message_alone(tmp_path / "none.yaml"):
        raise PackingError("\x1b[31m\x9b\u202e\ud800")
    print_page("title \x1b]0;x\x07", {"data": "a\x1b[2Jb\nsecond line"})
    printed = capsys.readouterr()
    shown = (printed.out + printed.err).replace("\n", "")
    assert shown.isprintable()
    assert r"\x1b[31m\x9b\u202e\ud800" in shown
    assert "second line" in printed.out
