"""Prepares vLLM's engine on a CPU, where it computes some layers wrongly and others not at all."""

from __future__ import annotations

from typing import Any

from rollout_sft.model.layer_kinds import recurrent_layers
from rollout_sft.model.wrappers import base_model

COMPARED = ("falcon_h1", "granitemoehybrid", "mamba2")
"""Families with recurrent layers whose greedy rollouts by vLLM on a CPU equal those of Hugging Face."""


def prepare_cpu(model: Any) -> None:
    """
    Lets vLLM compute on this CPU what Hugging Face does, or raises `ValueError`.

    Args:
        model (`PreTrainedModel`):
            The model whose weights the engine will get.
    """
    import torch._dynamo

    # The engine compiles small functions, for which a machine may lack the compiler.
    torch._dynamo.config.disable = True
    _renew_experts()
    if not recurrent_layers(base_model(model)):
        return
    family = model.config.model_type
    if family not in COMPARED:
        raise ValueError(
            f"rollout_matching.rollout_backend is vllm on a CPU, but there vLLM's answers of {family} were not found "
            f"equal to Hugging Face's; of the models with recurrent layers those of {', '.join(COMPARED)} were. "
            "Set rollout_matching.rollout_backend: hf, which works with every model that is trained."
        )
    _keep_convolutions_unpacked()


def _keep_convolutions_unpacked() -> None:
    """
    Leaves the weights of convolutions as they are.

    vLLM 0.30 packs them on a processor with AVX512-BF16. Mamba's layers read the packed weights as if they were not:
    in bfloat16 every answer is wrong, and in float32 packing fails.
    """
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm
    if pack.__module__ == __name__:  # an earlier engine of this process
        return

    def pack_matrices(layer: Any, remove_weight: bool) -> None:
        if layer.weight.ndim == 2 or layer.weight.is_meta:
            pack(layer, remove_weight)

    utils.dispatch_cpu_unquantized_gemm = pack_matrices


def _renew_experts() -> None:
    """
    Lets a weight update pack the weights of experts again.

    vLLM 0.30 packs them only while it has no kernel yet. An update would put weights that are not packed in the place
    of packed ones, and every answer would be wrong.
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod as Experts

    process = Experts.process_weights_after_loading
    if process.__module__ == __name__:
        return

    def process_from_the_start(self: Any, layer: Any) -> None:
        self.moe_kernel = None
        process(self, layer)

    Experts.process_weights_after_loading = process_from_the_start
