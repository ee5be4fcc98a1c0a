"""What a vLLM server needs of us in its workers.

Start it with `--worker-extension-cls rollout_sft.rollouts.vllm_worker.RolloutWorker`. The methods are called by name
over the server's route /collective_rpc.
"""

from __future__ import annotations

import json
from typing import Any


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

    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "weight"):
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


class RolloutWorker:
    """Mixed into vLLM's worker by `--worker-extension-cls`."""

    model_config: Any
    model_runner: Any

    def rollout_description(self) -> str:
        """The configuration of the served model as JSON, to compare with that of the trained one."""
        return json.dumps(self.model_config.hf_config.to_dict(), default=str)

    def rollout_repack_head(self) -> None:
        """[`repack_head`], where there is something to renew."""
        from vllm.platforms import current_platform

        if current_platform.is_cpu() and self.model_config.hf_config.get_text_config().tie_word_embeddings:
            repack_head(self.model_runner.get_model())
