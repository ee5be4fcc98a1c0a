"""Colocated vLLM: an engine in every rank's process.

The engine starts from the model's configuration alone (dummy weights, no tokenizer): its weights always are the live
ones, and ids go in and out as they are. With `tensor_parallel_size: N` each N neighbouring ranks share one engine: they
generate their requests together, and every rank keeps its own answers.
"""

from __future__ import annotations

import copy
import gc
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.ranks.distributed import entangled, together
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm.backend import Answer

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    # On a CPU the engine would otherwise bind the trainer's threads to cores of its own choice.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class ColocatedEngine:
    """
    A vLLM engine in this process.

    Args:
        config (`VLLMConfig`):
            Memory, length and further arguments of the engine.
        longest (`int`):
            Tokens that a prompt and its response can have at most, where `max_model_len` is not given.
        dtype (`str`):
            Type to generate in: float32, bfloat16 or float16.

    Attributes:
        version (`int` or `None`):
            Version of the weights that are loaded.
        max_model_len (`int`):
            Most tokens of a prompt and its response.
        retries (`int`):
            Always 0.
    """

    def __init__(self, config: VLLMConfig, *, longest: int, dtype: str):
        self._config = config
        self._longest = longest
        self._dtype = dtype
        self._llm: Any = None
        self._asleep = False
        self.version: int | None = None
        self.max_model_len = 0
        self.retries = 0

    def load(self, weights: LiveWeights) -> None:
        """Takes over the live weights, and starts the engine when there is none yet; every rank calls it together."""
        if self._llm is None:
            together(lambda: self._start(weights), share=lambda _: None)
        version = weights.version
        together(lambda: self._load(weights), share=lambda _: None)
        self.version = version

    def _load(self, weights: LiveWeights) -> None:
        self._wake()
        tensors = weights.tensors()
        try:
            # Loading through the worker is the one call that works on CPU and GPU alike and copies every tensor.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
        finally:
            for _ in tensors:  # with sharded weights the other ranks still wait in their gathers
                pass
        self._repack_head(weights)
        self._forget_prefixes()

    def _repack_head(self, weights: LiveWeights) -> None:
        """On a CPU a head tied to the embedding keeps a packed copy, which reloading does not renew."""
        from vllm.platforms import current_platform

        if current_platform.is_cpu() and weights.model.config.get_text_config().tie_word_embeddings:
            from rollout_sft.rollouts.vllm.worker import repack_head

            self._llm.apply_model(repack_head)

    def _forget_prefixes(self) -> None:
        """Cached keys and values of earlier prompts were computed with the old weights."""
        if not self._llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM could not reset its prefix cache after the weight update: requests are still running."
            )

    def generate(self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any]) -> list[Answer]:
        """One answer per request. With tensor parallelism the ranks of one engine call it together."""
        if self._config.tensor_parallel_size == 1:
            return self._generate(requests, knobs)
        # A rank that failed on its way here says so now, and not while its neighbours wait for its requests.
        together(lambda: None, share=lambda _: None)
        shares: list[list[RolloutRequest]] = [[] for _ in range(self._config.tensor_parallel_size)]
        with entangled():
            group = _neighbours(self._config.tensor_parallel_size)
            dist.all_gather_object(shares, list(requests), group=group)
            mine = dist.get_rank() % self._config.tensor_parallel_size
            start = sum(len(share) for share in shares[:mine])
            answers = self._generate([request for share in shares for request in share], knobs)
        return answers[start : start + len(requests)]

    def _generate(self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any]) -> list[Answer]:
        if not requests:
            return []
        from vllm import SamplingParams

        self._wake()
        params = [SamplingParams(seed=request.seed, detokenize=False, **knobs) for request in requests]
        with _generators_untouched():
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(request.prompt_ids)} for request in requests], params, use_tqdm=False
            )
        return [Answer(list(out.prompt_token_ids), list(out.outputs[0].token_ids)) for out in outputs]

    def sleep(self) -> None:
        """Gives weights and key-value cache back until the next use, where the platform can and it is wanted."""
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
            self._sleeps = platform.is_sleep_mode_available() and self._config.sleep is not False
            if self._config.sleep and not self._sleeps:
                raise ValueError("rollout_matching.vllm.sleep is true, but vLLM cannot sleep on this platform.")
            description = copy.deepcopy(model.config)
            description.architectures = [_class_name(model)]
            description.save_pretrained(folder)
            limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or self._longest
            arguments: dict[str, Any] = {
                "dtype": self._dtype,
                "max_model_len": self._config.max_model_len or min(limit, self._longest),
                "gpu_memory_utilization": self._config.gpu_memory_utilization,
                "enforce_eager": self._config.enforce_eager or platform.is_cpu(),
                "tensor_parallel_size": self._config.tensor_parallel_size,
                "enable_sleep_mode": self._sleeps,
                "seed": 0,
            }
            if ranks > 1:
                arguments["distributed_executor_backend"] = "external_launcher"
            given = {**arguments, **self._config.engine_args}
            self._llm = LLM(model=folder, load_format="dummy", skip_tokenizer_init=True, **given)
        self.max_model_len = int(self._llm.llm_engine.model_config.max_model_len)


def _class_name(model: Any) -> str:
    """The name under which vLLM knows the model; `fully_shard` puts a class of its own in front."""
    return next(kind.__name__ for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def _import_vllm() -> tuple[Any, Any]:
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ImportError(
            f"rollout_matching.rollout_backend is vllm, but vLLM cannot be imported ({error}). Install it: "
            "pip install 'packsched[train,vllm]', or see docs/vllm.md for machines without a GPU."
        ) from error
    if current_platform.is_cpu():
        import torch._dynamo

        # The CPU engine compiles small functions, for which a machine may lack the compiler.
        torch._dynamo.config.disable = True
    return LLM, current_platform


def _neighbours(size: int) -> Any:
    """vLLM's own group of the ranks that share this rank's engine."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    assert group.world_size == size, (group.world_size, size)
    return group.cpu_group


@contextmanager
def _generators_untouched() -> Iterator[None]:
    """vLLM seeds the global generators and replaces `torch.set_num_threads`; training must not notice."""
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
