"""Runs a vLLM server on the CPU for as long as a benchmark needs it."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rollout_sft.serve import server_command, server_environment

PORT = 8123


@contextmanager
def server(folder: Path, *, max_model_len: int, core: int | None = None) -> Iterator[str]:
    """Serves the model of a folder, on one core where one is given, and gives its address."""
    command = [*server_command(folder, port=PORT, max_model_len=max_model_len), "--dtype", "float32", "--enforce-eager"]
    # On a CPU vLLM 0.30 cannot read a part of a prompt whose response is sampled with a seed.
    command += ["--no-enable-chunked-prefill", "--kv-cache-memory-bytes", str(1 << 29)]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    environment = {**os.environ, **server_environment(), "OMP_NUM_THREADS": "1"}
    url = f"http://127.0.0.1:{PORT}"
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()
