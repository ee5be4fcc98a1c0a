"""Saving, resuming, evaluating and probing: whichever rank fails, both raise, with that rank's message."""

import math

import pytest

from tests.distributed.launch import on_two_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    return on_two_ranks("tests.distributed.shared_failures_worker", folder, str(folder))


@pytest.mark.parametrize(
    ("scenario", "rank", "message"),
    [
        ("save_on_a_full_disk", 1, "OSError: [Errno 28] No space left on device"),
        ("resume_without_a_buffer", 1, "ValueError: "),
        ("evaluate_a_broken_file", 0, "OSError: sample "),
        ("leak_on_one_rank", 1, "LeakError: packed segments see each other here"),
    ],
)
def test_a_failure_of_one_rank_reaches_the_other(ended, scenario, rank, message):
    own = ended[rank][scenario]["error"]
    assert own.startswith(message)
    other = ended[1 - rank][scenario]["error"]
    assert other == f"PeerError: rank {rank} failed, so rank {1 - rank} stops too. {own}"


def test_a_checkpoint_that_one_rank_could_not_write_is_not_marked(ended):
    assert [rank["save_on_a_full_disk"]["finished"] for rank in ended] == [[], []]


def test_a_missing_buffer_is_named_with_the_way_out(ended):
    error = ended[1]["resume_without_a_buffer"]["error"]
    assert "carry_buffer_rank1.pt" in error
    assert "post_rollout_pack_scope: window" in error


@pytest.mark.parametrize(("scenario", "message"), [("empty_stream", "gave no sample"), ("empty_data_set", "0 samples")])
def test_data_that_is_empty_everywhere_is_the_same_error_everywhere(ended, scenario, message):
    errors = {rank[scenario]["error"] for rank in ended}
    assert len(errors) == 1
    assert errors.pop().startswith("ValueError: the training data set ")
    assert all(message in rank[scenario]["error"] for rank in ended)


@pytest.mark.parametrize("scenario", ["infinite_loss", "infinite_loss_sharded"])
def test_an_infinite_loss_of_one_rank_stops_both_before_the_step(ended, scenario):
    errors = {rank[scenario]["error"] for rank in ended}
    assert len(errors) == 1, errors
    assert errors.pop().startswith(
        "NonFiniteError: step 2: the norm of the gradient is nan, so the step is not done.\n"
        "rank 0, every loss is finite, samples "
    )
    assert all("rank 1, micro-step 1: loss nan, samples 'train-" in rank[scenario]["error"] for rank in ended)
    assert all(rank[scenario]["steps"] == 1 for rank in ended)


@pytest.mark.parametrize("scenario", ["skipped_loss", "skipped_loss_sharded"])
def test_a_step_that_one_rank_skips_is_skipped_by_both(ended, scenario):
    own, other = (rank[scenario] for rank in ended)
    assert own == other
    assert (own["error"], own["steps"], own["skipped"]) == (None, 3, [0, 1, 0])
    assert math.isfinite(own["weights"])
