"""Runs one cell in a process of its own: its peak memory is its own, and a crash costs one cell."""

from __future__ import annotations

import multiprocessing
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Forked: torch, transformers and TRL are imported once. The parent never touches the GPU.
CONTEXT = multiprocessing.get_context("fork")


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what `work` returns in a child process, or `{"failed": ...}` with the reason."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run, args=(work, sender))
    process.start()
    sender.close()
    try:
        answer: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        return {"failed": f"the process ended with {process.exitcode}"}
    process.join()
    return answer


def _run(work: Callable[[], dict[str, Any]], sender: Any) -> None:
    torch.set_num_threads(1)  # threads that the parent had are not forked
    try:
        answer = work()
    except Exception as error:
        traceback.print_exc()
        answer = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    sender.send(answer)
    sender.close()
    os._exit(0)  # neither torch nor datasets has anything to put away


class PeakMemory:
    """Measures by how many bytes the memory of this process rises at most; resident on a CPU, tensors on a GPU."""

    def __init__(self, cuda: bool):
        self.cuda = cuda
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the highest level so far
            self.before = _status("VmRSS")

    def rise(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated() - self.before
        return _status("VmHWM") - self.before


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, name
    return int(found.group(1)) * 1024
