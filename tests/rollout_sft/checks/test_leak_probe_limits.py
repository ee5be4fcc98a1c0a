"""Where the leak probe draws its lines, and that it looks at every segment."""

from types import SimpleNamespace

import pytest
import torch

from rollout_sft.checks.leak_probe import COPIES, LEAK, IsolationReport, LeakError, _judge, check_isolation
from rollout_sft.checks.probe_inputs import draw_tokens

LENGTH, VOCABULARY = 16, 64


class Planted(torch.nn.Module):
    """
    Logits of one table row for each token; `leak` may change the (3, 16, 64) logits of a packed row, knowing its
    tokens, and `alone` those of a plain forward.
    """

    def __init__(self, leak=lambda logits, ids: None, scale=1.0, alone=lambda logits: None):
        super().__init__()
        self.table = torch.nn.Parameter(scale * torch.eye(VOCABULARY, dtype=torch.float64))
        self.leak, self.alone = leak, alone
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=VOCABULARY))

    def forward(self, input_ids):
        if len(input_ids) > 1:
            logits = self.table[input_ids].clone()
            self.alone(logits)
            return SimpleNamespace(logits=logits)
        logits = self.table[input_ids.view(3, LENGTH)].clone()
        self.leak(logits, input_ids.view(3, LENGTH))
        return SimpleNamespace(logits=logits.view(1, 3 * LENGTH, VOCABULARY))


def check(model):
    return check_isolation(model, build_batch=lambda rows: {"input_ids": torch.tensor(rows).view(1, -1)})


def test_a_model_without_a_leak_is_measured_as_that():
    assert check(Planted()) == IsolationReport(leak=0.0, copies=0.0, alone=0.0, response=1.0, pixels=None)


@pytest.mark.parametrize("segment", [0, 2])
@pytest.mark.parametrize("position", [0, LENGTH - 1])
def test_a_leak_into_one_position_of_one_neighbour_is_seen(segment, position):
    """Its size is a share of the number of the middle segment's first token, so only the neighbour can tell."""

    def leak(logits, ids):
        logits[segment, position, 0] += 1e-3 * float(ids[1, 0] != ids[0, 0])

    with pytest.raises(LeakError, match=r"moved its neighbours' logits by 1\.0e-03 of the largest logit"):
        check(Planted(leak))


@pytest.mark.parametrize("copy", [1, 2])
def test_each_copy_is_compared_with_the_first(copy):
    def shift(logits, ids):
        logits[copy] += 1e-3

    with pytest.raises(LeakError, match=r"Logits of two copies differ by 1\.0e-03"):
        check(Planted(shift))


@pytest.mark.parametrize("row", [0, 1])
def test_packed_logits_are_compared_with_those_of_a_plain_forward(row):
    def shift(logits):
        logits[row, 3, 0] += 1e-3

    with pytest.raises(LeakError, match=r"gives it alone. They differ by 1\.0e-03"):
        check(Planted(alone=shift))


def test_movements_are_relative_to_the_largest_logit_and_to_1_at_least():
    def leak(logits, ids):
        logits[0, 0, 0] += 2e-5 * float(ids[1, 0] != ids[0, 0])

    with pytest.raises(LeakError, match=r"by 2\.0e-05"):
        check(Planted(leak))
    assert check(Planted(leak, scale=4.0)).leak == pytest.approx(5e-6), "a quarter, since the largest logit is 4"
    assert check(Planted(scale=0.25)).response == 0.25, "small logits are not made large"


def report(**measured):
    return IsolationReport(**{"leak": 0.0, "copies": 0.0, "alone": 0.0, "response": 1.0, "pixels": 1.0, **measured})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_every_limit_may_be_reached_and_not_exceeded(dtype):
    copies = COPIES.get(dtype, 0.1)
    alone = max(copies, LEAK)
    reached = {"leak": LEAK, "copies": copies, "alone": alone, "response": 2 * LEAK, "pixels": 2 * LEAK}
    _judge(report(**reached), Planted(), dtype)
    _judge(report(pixels=None), Planted(), dtype)
    for too_much, message in [
        ({"leak": 1.01 * LEAK}, "see each other"),
        ({"leak": float("nan")}, "see each other"),
        ({"copies": 1.01 * copies}, "logits change when it is packed"),
        ({"copies": float("nan")}, "logits change when it is packed"),
        ({"alone": 1.01 * alone}, "that the model gives it alone"),
        ({"alone": float("nan")}, "that the model gives it alone"),
        ({"pixels": LEAK}, "the probe sees no images"),
        ({"pixels": float("nan")}, "the probe sees no images"),
        ({"response": LEAK}, "the probe is blind"),
        ({"response": float("nan")}, "the probe is blind"),
    ]:
        with pytest.raises(LeakError, match=message):
            _judge(report(**too_much), Planted(), dtype)


def test_the_limits_grow_with_the_rounding_of_a_precision():
    assert COPIES[torch.float64] < COPIES[torch.float32] < COPIES[torch.float16] < COPIES[torch.bfloat16] == 0.1
    assert LEAK == 1e-5


@pytest.mark.parametrize("vocabulary", [2, 3, 64])
def test_the_two_sequences_differ_at_every_position(vocabulary):
    x, y = draw_tokens(vocabulary, 2000)
    assert all(a != b for a, b in zip(x, y, strict=True))
    assert {*x} == {*y} == {*range(vocabulary)}
