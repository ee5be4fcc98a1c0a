"""What a rollout backend of the user's own must have."""

import pytest

from rollout_sft import Rollout


class Silent:
    def generate(self, requests):
        return [Rollout(response_ids=[], truncated=False) for _ in requests]


class Counting(Silent):
    def __init__(self):
        self.counters = {"rollout/mine": (3.0, 2.0)}


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (Silent(), "rollout_backend is a Silent without counters"),
        (object(), "rollout_backend is a object without generate and counters"),
        (Counting, "rollout_backend is the class Counting; give an instance"),
    ],
)
def test_a_backend_that_lacks_something_is_refused_by_name(make_trainer, backend, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(backend=backend)


def test_the_counters_of_a_backend_are_logged(make_trainer):
    trainer = make_trainer(backend=Counting(), post_rollout_pack_scope="window")
    trainer.train()
    assert trainer.state.log_history[0]["rollout/mine"] == 1.5
