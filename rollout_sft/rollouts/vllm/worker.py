"""Extends the workers of a vLLM engine by what training needs.

Start a server with `--worker-extension-cls rollout_sft.rollouts.vllm.worker.RolloutWorker`; its route /collective_rpc
calls the methods by name. A colocated engine uses the same extension.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from rollout_sft.rollouts.vllm.weight_stream import WeightStream, join_store, own_address


def repack_head(model: Any) -> None:
    """
    Renews the packed copy of a tied output head on a CPU.

    vLLM's CPU kernels compute with a packed copy of each weight. Reloading renews it for every layer but a head that
    shares the embedding's tensor, which would go on with the old weights.

    Args:
        model (`nn.Module`):
            vLLM's model.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    # Some models call a tied head `lm_head`; it is the embedding itself, or a layer with the embedding's tensor.
    for name, head in model.named_modules(remove_duplicate=False):
        if name.rpartition(".")[2] == "lm_head" and isinstance(head, VocabParallelEmbedding):
            dispatch_cpu_unquantized_gemm(head, remove_weight=False)


class RolloutWorker:
    """Extends vLLM's worker, named by `--worker-extension-cls`."""

    model_config: Any
    model_runner: Any
    parallel_config: Any
    rank: int
    reload_weights: Any
    rollout_open_stream: tuple[str, WeightStream] | None = None

    def rollout_description(self) -> str:
        """Returns the configuration of the served model as JSON, to compare with that of the trained one."""
        return json.dumps(self.model_config.hf_config.to_dict(), default=str)

    def rollout_repack_head(self) -> None:
        """Calls [`repack_head`] where there is a packed copy of a tied head: on a CPU."""
        from vllm.platforms import current_platform

        if current_platform.is_cpu() and self.model_config.hf_config.get_text_config().tie_word_embeddings:
            repack_head(self.model_runner.get_model())

    def rollout_join(
        self,
        name: str,
        backend: Any,
        host: str,
        port: int,
        size: int,
        secret: str,
        meeting_seconds: float,
        seconds: float,
    ) -> int:
        """Opens this worker's end of a stream of weights, keeps it under `name`, and returns its rank there."""
        rank = 1 + self.parallel_config.data_parallel_index * self.parallel_config.world_size + self.rank
        self.rollout_open_stream = None
        address = own_address(host, port, meeting_seconds)
        store = join_store(host, port, meeting_seconds)
        limits = {"meeting_seconds": meeting_seconds, "seconds": seconds}
        stream = WeightStream(backend, store, address, rank, size, secret=secret, **limits)
        self.rollout_open_stream = name, stream
        return rank

    def rollout_stream(self) -> str:
        """Returns the name of the open stream; an empty one where there is none, as after a start."""
        return self.rollout_open_stream[0] if self.rollout_open_stream else ""

    def rollout_receive(self) -> int:
        """Loads what the trainer sends through the stream; returns the number of tensors."""
        assert self.rollout_open_stream is not None, "rollout_join comes first"
        count = 0

        def counted() -> Iterator[tuple[str, Tensor]]:
            nonlocal count
            for item in stream.receive():
                count += 1
                yield item

        stream = self.rollout_open_stream[1]
        tensors = counted()
        try:
            self.reload_weights(weights_iterator=tensors)
        except BaseException:
            self.rollout_open_stream = None
            raise
        finally:
            for _ in tensors:  # the trainer and the other workers are still in the middle of it
                pass
        return count
