"""Starts processes that need no imports, because they are forked from a process that has made them already.

A process of its own that trains spends five to six seconds of processor time on importing torch, transformers and the
trainer. Here one process per pytest session imports them, and every process of a test is forked from it. Apart from
that each is a process like any other: it has its own memory, process group, output and environment, it can be killed,
and it ends with an exit code. Only the seed of Python's hashes is that of the process it is forked from; tests that
compare runs bit for bit start one of them with `subprocess`.
"""

import contextlib
import multiprocessing
import os
import random
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])


class Process:
    """
    A running process with the methods of `subprocess.Popen` that tests need.

    Args:
        module (`str`):
            What it runs, as `python -m module` would.
        arguments (`tuple[str, ...]`):
            Its command line.
        output (`Path`):
            The file that gets its standard output and errors; what is in it stays.
        environment (`dict[str, str]`, *optional*):
            Variables that it has in addition.
    """

    def __init__(self, module, *arguments, output, environment=None):
        self.output = Path(output)
        work = (module, arguments, str(self.output), {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})})
        self._process = CONTEXT.Process(target=_run, args=work, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return self.returncode

    def kill(self):
        self._process.kill()

    def text(self):
        """What it has written so far."""
        return self.output.read_text()


def run(module, *arguments, output, timeout=240):
    """Runs a module to its end and returns its process; a process that takes longer is killed."""
    return wait_for([Process(module, *arguments, output=output)], timeout)[0]


def wait_for(processes, timeout=240):
    """Waits until all have ended; whichever has not by then is killed, so that none outlives its test."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
        for process in processes:
            process.wait(timeout)
    return processes


def _run(module, arguments, output, environment):
    os.setsid()
    os.chdir(ROOT)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(environment)
    # A new process seeds these from the system; a forked one would repeat its neighbour's numbers.
    random.seed()
    import numpy
    import torch

    numpy.random.seed()  # noqa: NPY002
    torch.set_num_threads(1)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
