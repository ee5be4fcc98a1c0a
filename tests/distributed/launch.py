"""Starts two real ranks on this machine."""

import json
import socket

from tests.processes import Process, wait_for


def start_two_ranks(worker, folder, *arguments):
    """Starts a module as ranks 0 and 1 of one process group; both write to `output.txt` in `folder`."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [
        Process(
            worker,
            *arguments,
            output=folder / "output.txt",
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]


def on_two_ranks(worker, folder, *arguments, timeout=240):
    """Runs a module on two ranks and returns what each rank wrote to `rank{rank}.json` in `folder`."""
    processes = wait_for(start_two_ranks(worker, folder, *arguments), timeout)
    assert [process.returncode for process in processes] == [0, 0], processes[0].text()[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def free_port():
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
