"""Weights over a real gloo group: each end in a thread of its own, as trainer and server workers are processes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rollout_sft.rollouts.vllm.weight_stream import WeightStream, join_store, open_store, send

SECONDS = 20.0

TENSORS = {
    "a.weight": torch.randn(17, 5),
    "a.bias": torch.randn(3).bfloat16(),
    "scale": torch.tensor(2.5, dtype=torch.float64),
    "steps": torch.tensor([7], dtype=torch.int64),
    "flags": torch.tensor([True, False, True]),
    "strided": torch.randn(6, 4).t(),
    "none": torch.empty(0, 4),
    "eight bits": torch.randn(5).to(torch.float8_e4m3fn),
}


def open_streams(workers=1, seconds=SECONDS):
    """A trainer's end, and those of workers."""
    store = open_store(seconds)
    with ThreadPoolExecutor(workers) as pool:
        ends = [
            pool.submit(
                lambda rank: WeightStream(
                    "gloo", join_store("127.0.0.1", store.port, seconds), rank, 1 + workers, seconds=seconds
                ),
                rank,
            )
            for rank in range(1, 1 + workers)
        ]
        return WeightStream("gloo", store, 0, 1 + workers, seconds=seconds), [end.result() for end in ends]


def received(ends):
    """What each end receives, in threads."""
    outcomes = [[] for _ in ends]
    threads = [
        threading.Thread(target=lambda end=end, got=got: got.extend(end.receive()))
        for end, got in zip(ends, outcomes, strict=True)
    ]
    for thread in threads:
        thread.start()
    return threads, outcomes


def assert_all(got):
    assert [name for name, _ in got] == list(TENSORS)
    for name, tensor in got:
        assert tensor.dtype == TENSORS[name].dtype
        assert tensor.shape == TENSORS[name].shape
        assert torch.equal(tensor.view(torch.uint8) if tensor.ndim else tensor, _bytes(TENSORS[name]))


def _bytes(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor


@pytest.mark.parametrize("bucket_bytes", [1, 100, 1 << 20], ids=["one each", "some", "all at once"])
def test_every_worker_of_every_server_receives_all_bit_for_bit(bucket_bytes):
    one, (first,) = open_streams()
    two, (second, third) = open_streams(workers=2)
    threads, outcomes = received([first, second, third])
    for _ in range(2):
        assert send([one, two], TENSORS.items(), bucket_bytes=bucket_bytes) == (len(TENSORS), {})
        for thread in threads:
            thread.join(SECONDS)
        for got in outcomes:
            assert_all(got)
        threads, outcomes = received([first, second, third])
    send([one, two], [])
    for thread, got in zip(threads, outcomes, strict=True):
        thread.join(SECONDS)
        assert got == []


def test_a_stream_that_breaks_does_not_stop_the_others():
    whole, (healthy,) = open_streams()
    silent, _ = open_streams(seconds=1.0)
    threads, (got,) = received([healthy])
    start = time.monotonic()
    count, broken = send([silent, whole], [*TENSORS.items(), ("large", torch.ones(1 << 22))], bucket_bytes=1)
    assert time.monotonic() - start < 5, "waited for the broken stream at every tensor"
    assert (count, list(broken)) == (len(TENSORS) + 1, [silent])
    threads[0].join(SECONDS)
    assert_all(got[:-1])


def test_a_failure_of_the_sender_ends_the_stream():
    stream, (end,) = open_streams()
    threads, (got,) = received([end])

    def tensors():
        yield "a.weight", TENSORS["a.weight"]
        raise OSError("no weights any more")

    with pytest.raises(OSError, match="no weights any more"):
        send([stream], tensors())
    threads[0].join(SECONDS)
    assert not threads[0].is_alive()
    assert got == []
