"""Runs a vLLM engine in every rank's process.

The engine starts from the model's configuration alone, with dummy weights and without a tokenizer: the live weights
replace the dummy ones before the first rollout, and token ids go in and come out unchanged. An image model's engine
also needs the files of the tokenizer and the image processor, to find the places of the images. With
`tensor_parallel_size: N` every N neighbouring ranks share one engine: they generate their requests together, and every
rank keeps its own answers.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.text import TextInputs
from rollout_sft.ranks.distributed import entangled, together
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.endings import Watch
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm import INSTALL, WORKER_EXTENSION, image_prompts
from rollout_sft.rollouts.vllm.backend import Answer
from rollout_sft.rollouts.vllm.cpu import prepare_cpu
from rollout_sft.rollouts.vllm.stepping import step_watched

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Without this the engine binds the trainer's threads to cores that it chooses, on a CPU.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class ColocatedEngine:
    """
    Runs a vLLM engine in this process.

    Args:
        config (`VLLMConfig`):
            Memory, length and further arguments of the engine.
        longest (`int`):
            Tokens that a prompt and its response can have at most, where `max_model_len` is not given.
        dtype (`str`):
            Type to generate in: float32, bfloat16 or float16.
        inputs (`InputAdapter`, *optional*):
            Collapses the prompts of an image model.
        processors (`Sequence`, *optional*):
            The tokenizer and the image processor of an image model.

    Attributes:
        version (`int` or `None`):
            Version of the weights that are loaded.
        max_model_len (`int`):
            Most tokens of a prompt and its response.
        retries (`int`):
            Always 0.
    """

    def __init__(
        self,
        config: VLLMConfig,
        *,
        longest: int,
        dtype: str,
        inputs: InputAdapter | None = None,
        processors: Sequence[Any] = (),
    ):
        self._config = config
        self._longest = longest
        self._dtype = dtype
        self._inputs = inputs or TextInputs()
        self._processors = processors
        self._llm: Any = None
        self._asleep = False
        self.version: int | None = None
        self.max_model_len = 0
        self.retries = 0

    def load(self, weights: LiveWeights) -> None:
        """Copies the live weights into the engine, and starts it first if needed; every rank calls it together."""
        if self._llm is None:
            together(lambda: self._start(weights), share=lambda _: None)
        version = weights.version
        together(lambda: self._load(weights), share=lambda _: None)
        self.version = version

    def _load(self, weights: LiveWeights) -> None:
        self._wake()
        tensors = weights.tensors()
        try:
            # Loading through the worker is the only call that works on both CPU and GPU and copies every tensor.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
        finally:
            for _ in tensors:  # with sharded weights the other ranks still wait in their gathers
                pass
        self._llm.collective_rpc("rollout_repack_head")
        self._forget()

    def _forget(self) -> None:
        """Resets the caches of prefixes and of images: what they hold was computed with the old weights."""
        if self._processors:
            self._llm.llm_engine.reset_encoder_cache()
        if not self._llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM could not reset its prefix cache after the weight update: requests are still running."
            )

    def generate(
        self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any], watch: Callable[[], Watch] | None = None
    ) -> list[Answer]:
        """Returns one answer per request. With tensor parallelism the ranks of one engine call it together."""
        if self._config.tensor_parallel_size == 1:
            return self._generate(requests, knobs, watch)
        # A rank that failed before this point reports it here, not while its neighbours wait for its requests.
        together(lambda: None, share=lambda _: None)
        shares: list[list[RolloutRequest]] = [[] for _ in range(self._config.tensor_parallel_size)]
        with entangled():
            group = _neighbours(self._config.tensor_parallel_size)
            dist.all_gather_object(shares, list(requests), group=group)
            mine = dist.get_rank() % self._config.tensor_parallel_size
            start = sum(len(share) for share in shares[:mine])
            answers = self._generate([request for share in shares for request in share], knobs, watch)
        return answers[start : start + len(requests)]

    def _generate(
        self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any], watch: Callable[[], Watch] | None
    ) -> list[Answer]:
        if not requests:
            return []
        from vllm import SamplingParams

        self._wake()
        params = [SamplingParams(seed=request.seed, detokenize=False, **knobs) for request in requests]
        with _generators_untouched():
            prompts = [image_prompts.prompt(request, self._inputs) for request in requests]
            if watch is not None:
                return step_watched(self._llm.llm_engine, prompts, params, watch)
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [
            Answer(list(out.prompt_token_ids), list(done.token_ids), finish_reason=done.finish_reason)
            for out in outputs
            for done in out.outputs[:1]
        ]

    def sleep(self) -> None:
        """Frees the memory of weights and key-value cache until the next use, where the platform supports it."""
        if self._llm is not None and self._sleeps and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Stops the engine; the process groups stay, since they may be the trainer's."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm, self.version = None, None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _start(self, weights: LiveWeights) -> None:
        model = weights.model
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks % self._config.tensor_parallel_size:
            raise ValueError(
                f"rollout_matching.vllm.tensor_parallel_size is {self._config.tensor_parallel_size}, but there are "
                f"{ranks} ranks; neighbouring ranks share an engine, so it takes a divisor of their number."
            )
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over in the process
        with _generators_untouched(), tempfile.TemporaryDirectory() as folder:
            LLM, platform = _import_vllm()
            if platform.is_cpu():
                prepare_cpu(model)
            self._sleeps = platform.is_sleep_mode_available() and self._config.sleep is not False
            if self._config.sleep and not self._sleeps:
                raise ValueError("rollout_matching.vllm.sleep is true, but vLLM cannot sleep on this platform.")
            description = image_prompts.engine_config(model.config)
            description.architectures = [_class_name(model)]
            for part in (description, *self._processors):
                part.save_pretrained(folder)
            limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or self._longest
            arguments: dict[str, Any] = {
                "dtype": self._dtype,
                "max_model_len": self._config.max_model_len or min(limit, self._longest),
                "gpu_memory_utilization": self._config.gpu_memory_utilization,
                "enforce_eager": self._config.enforce_eager or platform.is_cpu(),
                "tensor_parallel_size": self._config.tensor_parallel_size,
                "enable_sleep_mode": self._sleeps,
                "seed": 0,
                "worker_extension_cls": WORKER_EXTENSION,
            }
            if self._processors:
                arguments |= image_prompts.ENGINE_ARGUMENTS
            if ranks > 1:
                arguments["distributed_executor_backend"] = "external_launcher"
            given = {**arguments, **self._config.engine_args}
            self._llm = LLM(model=folder, load_format="dummy", skip_tokenizer_init=not self._processors, **given)
        self.max_model_len = int(self._llm.llm_engine.model_config.max_model_len)


def _class_name(model: Any) -> str:
    """Returns the name under which vLLM knows the model; `fully_shard` puts a new class in front."""
    return next(kind.__name__ for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def _import_vllm() -> tuple[Any, Any]:
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ImportError(
            f"rollout_matching.rollout_backend is vllm, but vLLM cannot be imported ({error}). {INSTALL}"
        ) from error
    return LLM, current_platform


def _neighbours(size: int) -> Any:
    """Returns vLLM's group of the ranks that share this rank's engine."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    assert group.world_size == size, (group.world_size, size)
    return group.cpu_group


@contextmanager
def _generators_untouched() -> Iterator[None]:
    """Restores the global generators, which vLLM seeds, and `torch.set_num_threads`, which it replaces."""
    python, numpy, set_threads, threads = (
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
        torch.set_num_threads,
        torch.get_num_threads(),
    )
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
