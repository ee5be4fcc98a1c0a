"""Defines the section `rollout_matching.vllm`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch

from rollout_sft.config.keys import Range, check_fields
from rollout_sft.config.shorten import shorten


@dataclass(frozen=True, kw_only=True)
class VLLMConfig:
    """
    Says how vLLM is used (`rollout_matching.vllm`).

    Args:
        mode (`str`, *optional*, defaults to `"colocate"`):
            `colocate` runs an engine in every rank's process, `server` asks the servers of `base_url`.
        gpu_memory_utilization (`float`, *optional*, defaults to 0.3):
            `colocate`: share of the device's memory that the engine may take, weights included.
        max_model_len (`int`, *optional*):
            `colocate`: the most tokens of a prompt and its response. `global_max_length` plus the longest response
            when not given, and never more than the model takes.
        enforce_eager (`bool`, *optional*, defaults to `False`):
            `colocate`: whether to skip the capture of CUDA graphs; the engine then starts faster and generates slower.
        tensor_parallel_size (`int`, *optional*, defaults to 1):
            `colocate`: this many neighbouring ranks share one engine.
        sleep (`bool`, *optional*):
            `colocate`: whether the engine releases its memory between rollout and training. When not given, it does
            so where the platform supports it.
        engine_args (`dict`, *optional*):
            `colocate`: further arguments of `vllm.LLM`; they override all others.
        base_url (`str` or `list[str]`, *optional*):
            `server`: where the servers are, for instance http://127.0.0.1:8000. Requests are split over them.
        timeout (`float`, *optional*, defaults to 600.0):
            `server`: seconds that a rank waits for the rollouts of a window, or for a weight update, retries included.
        retries (`int`, *optional*, defaults to 3):
            `server`: how often a server that fails is asked again.
        concurrency (`int`, *optional*, defaults to 64):
            `server`: the most requests that a rank sends to one server at a time.
        weight_transfer (`str`, *optional*, defaults to `"folder"`):
            `server`: how weights get there. `folder` writes them to `weights_dir`; `nccl` broadcasts them from the
            trainer's device to those of the servers, `gloo` over host memory.
        weights_dir (`str`, *optional*):
            `folder`: a folder that trainer and servers both reach under this path; `<output_dir>/rollout_weights`
            when not given.
    """

    mode: Literal["colocate", "server"] = "colocate"
    gpu_memory_utilization: Annotated[float, Range(takes="more than 0 and at most 1", more_than=0, at_most=1)] = 0.3
    max_model_len: Annotated[int | None, Range(takes="1 token or more, or nothing", at_least=1)] = None
    enforce_eager: bool = False
    tensor_parallel_size: Annotated[int, Range(takes="1 rank or more", at_least=1)] = 1
    sleep: bool | None = None
    engine_args: dict[str, Any] = field(default_factory=dict)
    base_url: str | list[str] = field(default_factory=list)
    timeout: Annotated[float, Range(takes="more than 0 seconds", more_than=0)] = 600.0
    retries: Annotated[int, Range(takes="0 or more", at_least=0)] = 3
    concurrency: Annotated[int, Range(takes="1 request or more", at_least=1)] = 64
    weight_transfer: Literal["folder", "nccl", "gloo"] = "folder"
    weights_dir: str | None = None

    @property
    def urls(self) -> list[str]:
        """Returns the addresses of the servers, in order, without a slash at the end."""
        urls = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        return [url.rstrip("/").removesuffix("/v1") for url in urls]

    def __post_init__(self) -> None:
        check_fields(self, "rollout_matching.vllm")
        if any("@" in url for url in self.urls):
            raise ValueError(
                "rollout_matching.vllm.base_url holds a user name or a password. Addresses are written to logs and "
                "checkpoints: put what the server takes as the header Authorization into the environment variable "
                "ROLLOUT_SERVER_AUTHORIZATION instead, for instance 'Bearer ...'."
            )

    def check_unused(self, backend: str) -> None:
        """Raises `ValueError` when a value differs from its default though `backend` reads none of them."""
        defaults = asdict(VLLMConfig())
        unread = {name: default for name, default in defaults.items() if getattr(self, name) != default}
        if unread:
            raise ValueError(
                f"rollout_matching.vllm sets {', '.join(unread)}, but rollout_matching.rollout_backend is {backend}, "
                "which reads nothing of that section. Set rollout_backend: vllm, or remove the section; a file that "
                f"extends another one sets the defaults instead: vllm: {json.dumps(unread)}."
            )

    def check_usable(self) -> None:
        """Raises `ValueError` when the values do not fit together or cannot be used on this machine."""
        wrong = [url for url in self.urls if not url.startswith(("http://", "https://"))]
        if wrong or len(set(self.urls)) < len(self.urls):
            raise ValueError(
                f"rollout_matching.vllm.base_url is {shorten(self.base_url)}; it takes one or several different "
                "addresses that begin with http:// or https://."
            )
        if self.mode == "server" and not self.urls:
            raise ValueError(
                "rollout_matching.vllm.base_url is missing; mode: server takes the address of at least one vLLM "
                "server, for instance http://127.0.0.1:8000."
            )
        if self.weights_dir is not None and self.weight_transfer != "folder":
            raise ValueError(
                f"rollout_matching.vllm.weights_dir is {shorten(self.weights_dir)}, but weight_transfer: "
                f"{self.weight_transfer} writes nothing. Remove weights_dir, or set weight_transfer: folder."
            )
        if self.weight_transfer == "nccl" and self.mode == "server" and not torch.cuda.is_available():
            raise ValueError(
                "rollout_matching.vllm.weight_transfer is nccl, which needs a GPU here and in every server; there is "
                "none here. Use folder, or gloo."
            )
        if self.mode == "colocate" and self.urls:
            raise ValueError(
                f"rollout_matching.vllm.base_url is {shorten(self.base_url)}, but mode: colocate asks no server. "
                "Set mode: server, or remove base_url."
            )
