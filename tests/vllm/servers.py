"""Real vLLM servers as subprocesses, started by the recipe of docs/vllm.md."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests

from rollout_sft.serve import server_command, server_environment

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class RealServer:
    """One server process; `start` again after `kill` begins with the weights of its model folder."""

    def __init__(self, model_dir, log_dir, *further):
        self.model_dir = Path(model_dir)
        self._further = further
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = Path(log_dir) / f"server-{self.port}.log"
        self._process = None

    def start(self):
        command = server_command(self.model_dir, port=self.port, max_model_len=1024, python=sys.executable)
        command += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20)]
        command += self._further
        environment = {**os.environ, **server_environment(), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def wait(self, seconds=240):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            try:
                if requests.get(f"{self.url}/health", timeout=2).ok:
                    return self
            except requests.RequestException:
                time.sleep(0.3)
        raise AssertionError(f"no server after {seconds} s\n{self._log.read_text()[-4000:]}")

    def signal(self, number):
        os.killpg(self._process.pid, number)

    def kill(self):
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)
            self._process.wait(timeout=30)
