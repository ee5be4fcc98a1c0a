"""Weights over a real gloo group: each end in a thread of its own, as trainer and server workers are processes."""

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from rollout_sft.rollouts.vllm.weight_stream import WeightStream, _proof, join_store, open_store, own_address, send

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


HERE = "127.0.0.1"


def open_end(store, rank, size, *, secret="of this stream", seconds=SECONDS):
    return WeightStream("gloo", store, HERE, rank, size, secret=secret, meeting_seconds=seconds, seconds=seconds)


def open_streams(workers=1, seconds=SECONDS):
    """A trainer's end, and those of workers."""
    store, size = open_store(HERE, seconds), 1 + workers
    with ThreadPoolExecutor(workers) as pool:
        ends = [
            pool.submit(lambda rank: open_end(join_store(HERE, store.port, seconds), rank, size, seconds=seconds), rank)
            for rank in range(1, size)
        ]
        return open_end(store, 0, size, seconds=seconds), [end.result() for end in ends]


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


def listening():
    """The addresses on which this process listens, as (address, port)."""
    inodes = set()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            inodes.add(str(fd.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                numbers = bytes.fromhex(address)[::-1]
                found.append((socket.inet_ntoa(numbers) if len(numbers) == 4 else address, int(port, 16)))
    return found


def test_a_stream_listens_on_no_other_address_than_it_was_given():
    before = set(listening())
    store = open_store(HERE, SECONDS)
    assert set(listening()) - before == {(HERE, store.port)}
    seen = set()
    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(open_end, s, r, 3) for r, s in ((1, join_store(HERE, store.port, 9)), (0, store))]
        while not any(end.done() for end in ends) and len(seen) < 3:  # rank 2 comes once the others listen
            seen |= set(listening()) - before
        ends.append(pool.submit(open_end, join_store(HERE, store.port, 9), 2, 3))
        [end.result() for end in ends]
    assert len(seen) > 1, "the ranks' own listeners were not seen"
    assert {address for address, _ in seen} == {HERE}


def test_the_own_address_is_the_one_that_the_other_side_sees():
    with socket.create_server((HERE, 0)) as server:
        assert own_address("localhost", server.getsockname()[1], 5) == HERE


STRANGER = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
from rollout_sft.rollouts.vllm.weight_stream import WeightStream, _proof, join_store

def intrude(way, store):
    if way == "guesses":
        WeightStream("gloo", store, "127.0.0.1", 1, 2, secret="guess", meeting_seconds=5, seconds=10)
    group = dist.ProcessGroupGloo(store, 1, 2, timedelta(seconds=6))
    message = torch.zeros(2, 32, dtype=torch.uint8)
    for _ in range(0 if way == "listens" else 2):
        answer = torch.empty_like(message)
        group.alltoall_base(answer, message, [], []).wait()
        message = answer if way == "echoes" else message
    got = torch.zeros(2, dtype=torch.int64)
    group.broadcast(got, 0).wait()

print("ready", flush=True)
for line in sys.stdin:
    way, port = line.split()
    try:
        intrude(way, join_store("127.0.0.1", int(port), 10))
        print("received", flush=True)
    except RuntimeError as error:
        print("refused", flush=True)
"""


@pytest.fixture(scope="module")
def stranger():
    """A process of its own, which takes rank 1 of a stream: with the code of this project, or with torch's alone."""
    command = [sys.executable, "-c", STRANGER]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    process.wait(SECONDS)


@pytest.mark.parametrize("way", ["guesses", "zeros", "echoes", "listens"])
def test_a_stranger_in_a_worker_s_place_gets_no_weights(way, stranger):
    store = open_store(HERE, SECONDS)
    stranger.stdin.write(f"{way} {store.port}\n")
    stranger.stdin.flush()
    start = time.monotonic()
    reason = "rank 1 of 2 .* does not know its secret, so a stranger joined" if way != "listens" else "[Tt]imed out"
    with pytest.raises(RuntimeError, match=reason):
        WeightStream("gloo", store, HERE, 0, 2, secret="of this stream", meeting_seconds=3, seconds=SECONDS)
    assert time.monotonic() - start < 10
    assert next(line for line in stranger.stdout if not line.startswith("[Gloo]")) == "refused\n"


def test_a_stranger_between_two_workers_is_refused_by_both_sides():
    """Ranks 0 and 1 know the secret and rank 2 does not: the trainer and the worker say so, and so does rank 2."""
    store = open_store(HERE, SECONDS)
    secrets = ["of this stream", "of this stream", "guess"]
    with ThreadPoolExecutor(3) as pool:
        stores = [store, *(join_store(HERE, store.port, SECONDS) for _ in range(2))]
        ends = [pool.submit(open_end, s, r, 3, secret=secrets[r]) for r, s in enumerate(stores)]
        errors = [str(end.exception()) for end in ends]
    assert "rank 2 of 3 in the stream of weights does not know its secret" in errors[0]
    assert "rank 2 of 3 in the stream of weights does not know its secret" in errors[1]
    assert "does not know its secret" in errors[2]


def test_a_worker_refuses_a_trainer_that_does_not_know_the_secret():
    store = open_store(HERE, SECONDS)
    with ThreadPoolExecutor(2) as pool:
        trainer = pool.submit(open_end, store, 0, 2, secret="guess")
        worker = pool.submit(open_end, join_store(HERE, store.port, SECONDS), 1, 2)
        assert "rank 0 of 2 in the stream of weights does not know" in str(worker.exception())
        assert "rank 1 of 2 in the stream of weights does not know" in str(trainer.exception())


def test_a_proof_is_good_for_one_secret_one_nonce_and_one_direction():
    """Sent back to the one that made it, or used for another rank, it is wrong."""
    given = [(s, n, p, v) for s in (b"s", b"t") for n in (b"n" * 32, b"m" * 32) for p in range(3) for v in range(3)]
    proofs = {_proof(*each) for each in given}
    assert len(proofs) == len(given) == 36
