"""Starts two or more real ranks on this machine."""

import json
import socket
from functools import partial

from torch.distributed import TCPStore

from tests.processes import Process, wait_for

STORES = []
"""Rendezvous stores that outlive the ranks; they end with this process."""


def start_ranks(worker, folder, *arguments, ranks, keep_store=False):
    """Starts a module as the ranks of one process group; all write to `output.txt` in `folder`."""
    port = free_port()
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    if keep_store:
        STORES.append(TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))
        shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return [
        Process(
            worker,
            *arguments,
            output=folder / "output.txt",
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]


def on_ranks(worker, folder, *arguments, ranks, timeout=240, keep_store=False):
    """
    Runs a module on the ranks and returns what each of them wrote to `rank{rank}.json` in `folder`.

    `keep_store` keeps the rendezvous store here, as a launcher would, instead of in rank 0.
    """
    started = start_ranks(worker, folder, *arguments, ranks=ranks, keep_store=keep_store)
    processes = wait_for(started, timeout)
    assert [process.returncode for process in processes] == [0] * ranks, processes[0].text()[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


start_two_ranks = partial(start_ranks, ranks=2)
on_two_ranks = partial(on_ranks, ranks=2)


def free_port():
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
