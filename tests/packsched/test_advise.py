"""The advised batch size holds on windows that are drawn afresh, not from the lengths that it was advised on."""

import numpy as np
import pytest

from packsched import InfeasibleWindowError, OversizedSegmentError, PackingError, UndecidedWindowError, plan_window
from packsched.advise import advise, overfills, population

CAP = 16384
SAMPLES = 20
ENOUGH = (512, 4096, 32768)


def lognormal(mean, sigma):
    return lambda rng, n: np.clip(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, n), 16, CAP).astype(int)


def two_kinds(share, long, short=700):
    return lambda rng, n: np.where(rng.random(n) < share, long, short)


DISTRIBUTIONS = {
    "lognormal": (lognormal(600, 0.8), 4),
    "like a real log": (lognormal(2855, 0.35), 16),
    "uniform": (lambda rng, n: rng.integers(100, 8001, n), 16),
    "rare and longer than half a pack": (two_kinds(0.03, 8600), 2),
    "so rare that a sample may have none": (two_kinds(0.003, 16000), 4),
    "heavy tail": (lambda rng, n: np.clip((rng.pareto(1.6, n) + 1) * 500, 16, CAP).astype(int), 4),
}


def infeasible(draw, micro_steps, batch_size, windows, seed=11, enough=40):
    """How many of so many fresh windows no plan holds; counts no further than `enough`."""
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(windows // 1000):
        drawn = draw(rng, 1000 * batch_size * micro_steps).reshape(1000, -1)
        tokens = drawn.sum(axis=1)
        certain = tokens > micro_steps * CAP
        refused += int(certain.sum())
        doubtful = (tokens > 0.75 * micro_steps * CAP) | ((3 * drawn > CAP).sum(axis=1) > micro_steps // 2)
        for window in drawn[doubtful & ~certain]:
            if refused >= enough:
                return refused
            try:
                plan_window(window.tolist(), CAP, micro_steps)
            except (InfeasibleWindowError, UndecidedWindowError):
                refused += 1
    return refused


def broken(draw, micro_steps, enough, **how):
    """
    How many of `SAMPLES` samples get an advice that overfills more of 10,000 windows than chance adds to one.

    Counts no further than `enough`.
    """
    refused, found = {}, 0
    for seed in range(SAMPLES):
        sample = draw(np.random.default_rng(seed), ENOUGH[0]).tolist()
        size = advise(sample, CAP, micro_steps, **how).batch_size
        if size not in refused:
            refused[size] = infeasible(draw, micro_steps, size, 10_000, enough=4)
        found += refused[size] > 3
        if found == enough:
            break
    return found


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_the_promise_holds_on_new_windows_for_95_of_100_samples(kind):
    draw, micro_steps = DISTRIBUTIONS[kind]
    assert broken(draw, micro_steps, enough=2) <= 0.05 * SAMPLES


@pytest.mark.parametrize("kind", ["lognormal", "so rare that a sample may have none"])
def test_without_confidence_limits_the_promise_would_break(kind):
    draw, micro_steps = DISTRIBUTIONS[kind]
    assert broken(draw, micro_steps, enough=3, promise=False) > 0.1 * SAMPLES


@pytest.mark.parametrize(
    ("draw", "micro_steps", "times"),
    [
        (lognormal(600, 0.8), 16, 1.25),
        (lognormal(2855, 0.35), 4, 1.7),
        (two_kinds(0.03, 8600), 16, 1.5),
    ],
)
def test_the_advice_is_not_timid_after_many_segments(draw, micro_steps, times):
    """A batch so many times as large overfills at least 1 window in 1,000."""
    advice = advise(draw(np.random.default_rng(0), ENOUGH[-1]).tolist(), CAP, micro_steps)
    assert infeasible(draw, micro_steps, round(times * advice.batch_size), 4000) >= 4, advice


def test_similar_lengths_fill_windows_to_the_target():
    alike = np.random.default_rng(0).normal(120, 10, ENOUGH[-1]).astype(int).tolist()
    assert advise(alike, 2048, 64).fill == pytest.approx(0.9, abs=0.03)


def test_more_segments_allow_fuller_windows():
    draw, micro_steps = lognormal(600, 0.8), 16
    lens = draw(np.random.default_rng(0), ENOUGH[-1]).tolist()
    fills = [advise(lens[:n], CAP, micro_steps).fill for n in ENOUGH]
    assert fills == sorted(fills)
    assert fills[-1] > fills[0] + 0.1


def test_each_share_is_raised_to_its_upper_confidence_limit():
    lens, shares = population([100] * 500 + [900] * 12, 1000, 0.95)
    assert lens[0] == 1000
    assert shares[0] == pytest.approx(3 / 512, rel=0.01), "the rule of three"
    long = shares[lens >= 900].sum()
    rng = np.random.default_rng(0)
    assert (rng.binomial(512, long, 100_000) <= 12).mean() == pytest.approx(0.05, abs=0.005)
    assert shares.sum() == pytest.approx(1)
    assert population([100] * 500 + [900] * 12, 1000, None)[1] @ lens == pytest.approx(118.75)


def test_overfilling_is_recognized_where_sums_decide_nothing():
    """Compares with a plan of every window."""
    lens, shares = np.array([600, 450, 300, 40]), np.array([0.1, 0.2, 0.3, 0.4])
    for segments, packs in ((12, 4), (9, 4), (6, 4), (24, 8)):
        windows = np.random.default_rng(0).multinomial(segments, shares, 20_000)
        refused = 0
        for counts in np.unique(windows, axis=0):
            try:
                plan_window(np.repeat(lens, counts).tolist(), 1000, packs)
            except (InfeasibleWindowError, UndecidedWindowError):
                refused += int((windows == counts).all(axis=1).sum())
        assert overfills(lens, shares, 1000, packs, segments, 0) == (refused > 1), (segments, packs, refused)


def test_one_segment_per_pack_always_fits():
    advice = advise([60, 90] * 70, 100, 1)
    assert advice.batch_size == 1
    assert advice.fill == pytest.approx(0.75)


def test_a_larger_share_of_infeasible_windows_allows_fuller_ones_and_is_kept():
    draw, micro_steps = lognormal(2855, 0.35), 4
    lens = draw(np.random.default_rng(0), ENOUGH[1]).tolist()
    strict, loose = advise(lens, CAP, micro_steps), advise(lens, CAP, micro_steps, target=1.0, infeasible=0.02)
    assert loose.batch_size > strict.batch_size
    assert infeasible(draw, micro_steps, loose.batch_size, 2000, enough=100) < 0.02 * 2000


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (([], 100, 4), PackingError, "there are no lengths"),
        (([50, 101], 100, 4), OversizedSegmentError, "segment 1 has encoded_len 101, which is 1 more than"),
        (([50, 0], 100, 4), PackingError, "segment 1 has encoded_len 0"),
        (([50], 100, 0), PackingError, "micro_steps is 0; it must be at least 1"),
    ],
)
def test_bad_lengths_are_refused_by_number(arguments, kind, says):
    with pytest.raises(kind, match=says):
        advise(*arguments)


@pytest.mark.parametrize("share", [{"target": 0}, {"target": 90}, {"infeasible": 0}, {"infeasible": 1}])
def test_shares_out_of_range_are_refused(share):
    ((name, value),) = share.items()
    with pytest.raises(PackingError, match=f"{name} is {value}; it is a share"):
        advise([50], 100, 4, **share)
