"""Where time goes on two real ranks: each rank's parts add up, and who waits for a slow rank says so."""

import pytest

from tests.distributed.launch import on_two_ranks
from tests.distributed.times_worker import SLOW
from tests.rollout_sft.reporting.test_stopwatch import parts

pytestmark = pytest.mark.distributed


def test_a_slow_rank_shows_up_as_the_wait_of_the_other(tmp_path):
    fast, slow = on_two_ranks("tests.distributed.times_worker", tmp_path, str(tmp_path))
    for scope in ("micro", "window", "global"):
        for rank in (fast, slow):
            lines, walls = rank[scope]["lines"], rank[scope]["walls"]
            assert len(lines) == 2
            assert sum(line["time/step_s"] for line in lines) == pytest.approx(sum(walls), rel=0.01)
            for line in lines:
                assert sum(parts(line).values()) == pytest.approx(line["time/step_s"])
        assert sum(line["time/build_s"] for line in slow[scope]["lines"]) > 18 * SLOW
        assert sum(line["time/wait_s"] for line in fast[scope]["lines"]) > 18 * SLOW * 0.9
        assert sum(line["time/build_s"] for line in fast[scope]["lines"]) < 9 * SLOW
        assert sum(line["time/wait_s"] for line in slow[scope]["lines"]) < 9 * SLOW
    assert all("time/exchange_s" in line for line in fast["global"]["lines"])
