"""Trains by rollout-matching SFT on Hugging Face's `Trainer`, with packs from `packsched`."""

try:
    import accelerate  # noqa: F401  # the errors of what imports it indirectly do not name what is missing

    from rollout_sft.checks.leak_probe import LeakError, check_isolation
    from rollout_sft.config.arguments import RolloutSFTConfig
    from rollout_sft.data.records import load_records
    from rollout_sft.data.samples import Sample
    from rollout_sft.inputs.segment import Segment
    from rollout_sft.reporting.metrics import Counters
    from rollout_sft.rollouts.base import Rollout, RolloutBackend, RolloutRequest
    from rollout_sft.targets.base import Target, TargetBuilder
    from rollout_sft.trainer import RolloutSFTTrainer
except ImportError as error:
    if (error.name or "").partition(".")[0] in ("", "rollout_sft"):
        raise
    try:
        from rollout_sft.config.releases import ReleaseError, explain_import
    except ImportError:  # what these need is missing as well
        explanation = None
    else:
        explanation = explain_import(error)
    if explanation is not None:
        raise ReleaseError(explanation) from error
    if not isinstance(error, ModuleNotFoundError):
        raise
    raise ImportError(
        f"rollout_sft needs {error.name}, which is not installed. Install what training needs: "
        "pip install 'packsched[train]'"
    ) from error

__all__ = [
    "Counters",
    "LeakError",
    "Rollout",
    "RolloutBackend",
    "RolloutRequest",
    "RolloutSFTConfig",
    "RolloutSFTTrainer",
    "Sample",
    "Segment",
    "Target",
    "TargetBuilder",
    "check_isolation",
    "load_records",
]
