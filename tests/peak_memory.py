"""How far the bytes that tensors on the CPU hold rose while something ran, as the allocator saw it."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """
    By how many bytes the allocated memory rose at most; temporaries inside operators included.

    Counted from the lowest level before, since what an earlier recording allocated may be freed in this one.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    assert changes, "the profiler recorded no memory"
    live = lowest = rise = 0
    for _, change in changes:
        live += change
        lowest = min(lowest, live)
        rise = max(rise, live - lowest)
    return rise
