"""Starts a vLLM server for the rollouts of a configuration: `python -m rollout_sft.serve --config x.yaml`.

Writes the model and the tokenizer of the configuration's first stage to a temporary folder, and runs vLLM's server on
them with the parts that training needs: the routes for weight updates, and the worker extension. The server's first
weights are never used for a rollout; the trainer sends its weights first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from rollout_sft.config.run import load_run
from rollout_sft.model.image_processor import load_image_processor
from rollout_sft.model.loading import load_model, load_tokenizer, reads_images
from rollout_sft.rollouts.vllm import WORKER_EXTENSION
from rollout_sft.rollouts.vllm.image_prompts import SERVER_ARGUMENTS, check_image_model, engine_config

_CPU_CACHE_BYTES = 1 << 30
"""Size of the cache of a server without a GPU, unless the command line sets it."""


def server_command(model_dir: str | Path, *, port: int, max_model_len: int, python: str = sys.executable) -> list[str]:
    """
    Returns the command of a server for training.

    Args:
        model_dir (`str` or `Path`):
            Folder with the model and its tokenizer.
        port (`int`):
            The port; the server listens only on this machine.
        max_model_len (`int`):
            The most tokens of a prompt and its response.
        python (`str`, *optional*):
            The interpreter that has vLLM.

    Returns:
        `list[str]`: the command, to be run with [`server_environment`].
    """
    return [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir)),
        *("--host", "127.0.0.1", "--port", str(port), "--seed", "0", "--max-model-len", str(max_model_len)),
        *("--worker-extension-cls", WORKER_EXTENSION),
    ]


def server_environment() -> dict[str, str]:
    """Returns the variables that the server needs: routes for weight updates, and defaults without a GPU."""
    needed = {"VLLM_SERVER_DEV_MODE": "1"}
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "0" if _has_gpu() else "1",
    }
    return {**{k: os.environ.get(k, v) for k, v in defaults.items()}, **needed}


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _remove_at_the_end(folder: str) -> None:
    """
    Starts a process that removes a folder when this process ends in any way.

    This process becomes the server and so cannot remove the folder itself. Its end closes the pipe from which the
    other process reads.
    """
    remove = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"
    command = [sys.executable, "-I", "-c", remove, folder]
    reader, writer = os.pipe()
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=reader, stdout=quiet, stderr=quiet, start_new_session=True)
    os.close(reader)
    os.set_inheritable(writer, True)


def _without_gpu(further: Sequence[str]) -> list[str]:
    """Returns the arguments without which vLLM compiles for a GPU and takes nearly all of the machine's memory."""
    memory = ("--kv-cache-memory-bytes", "--gpu-memory-utilization")
    given = any(argument.startswith(memory) for argument in further)
    return ["--enforce-eager"] + ([] if given else [memory[0], str(_CPU_CACHE_BYTES)])


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Writes the model and becomes the server.

    Args:
        arguments (`Sequence[str]`, *optional*):
            The command line; unknown arguments go to vLLM.
    """
    parser = argparse.ArgumentParser(prog="rollout_sft.serve", description="A vLLM server for rollouts.")
    parser.add_argument("--config", required=True, help="the YAML file of the training")
    parser.add_argument("--port", type=int, default=8000)
    known, further = parser.parse_known_args(arguments)
    stage = load_run(known.config)[0]
    args = stage.training
    folder = tempfile.mkdtemp(prefix="rollout_sft-serve-")
    _remove_at_the_end(folder)
    tokenizer = load_tokenizer(stage.model)
    model = load_model(stage.model, tokenizer, seed=args.seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for_images: tuple[str, ...] = ()
    if reads_images(model.config):
        image_processor = load_image_processor(stage.model, model.config)
        check_image_model(model.config, tokenizer, image_processor)
        engine_config(model.config).save_pretrained(folder)
        image_processor.save_pretrained(folder)
        for_images = SERVER_ARGUMENTS
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    command = server_command(
        folder, port=known.port, max_model_len=min(limit or args.longest_rollout, args.longest_rollout)
    )
    command += ["--dtype", str(model.dtype).removeprefix("torch."), *for_images, *further]
    command += [] if _has_gpu() else _without_gpu(further)
    os.execve(command[0], command, {**os.environ, **server_environment()})


if __name__ == "__main__":
    main()
