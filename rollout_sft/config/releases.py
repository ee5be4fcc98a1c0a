"""Names what a release of transformers, accelerate or torch can rename, and says when the installed one did.

| what | names by version | what a release that renames it would break |
|---|---|---|
| a layer's cache argument | `CACHE_ARGUMENTS` | a hybrid's recurrent layers are not found |
| private methods of `Trainer` | `TRAINER_CALLS` | a save, a resume or a check of the gradient is left out |
| who divides the loss | `loss_is_scaled_for_ga` | the loss is divided by GA once more |
| private state | `_tr_loss`, `_set_sync_gradients` | a skipped step is logged or done after all |
| functions and classes by import | the `import` lines of rollout_sft | nothing is imported |

Mask functions (`sdpa_mask`, `sdpa_attention_forward`) are in the last line: an import that fails ends with
[`explain_import`]. The other lines are asked once, by [`check_releases`], before a trainer is made. Tests fail for a
name that the installed release no longer has, and for a private method that is overridden and not listed.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import CodeType
from typing import Any

import transformers
from accelerate.state import GradientState
from packaging.version import Version

logger = logging.getLogger(__name__)

TESTED = {
    "torch": ("2.9.0", "2.15.0"),
    "transformers": ("5.20.0", "5.24.0"),
    "accelerate": ("1.10.0", "1.15.0"),
    "peft": ("0.18.0", "0.21.2"),
    "datasets": ("4.0.0", "5.2.0"),
}
"""The lowest and the newest version with which the tests were run (`make test-lowest`, `make test-newest`)."""

CACHE_ARGUMENTS = {
    "cache",  # transformers 5.24
    "cache_params",
    "past_key_values",
    "state",  # rwkv
    "use_cache",
}
"""Arguments by which a layer takes a state; a layer that has one and a convolution along the row is recurrent."""

TRAINER_CALLS = (
    "_evaluate",
    "_get_grad_norm",
    "_init_training_state",
    "_inner_training_loop",
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_run_epoch",
    "_save",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
    "_save_rng_state",
    "_save_scaler",
)
"""Private methods of `Trainer` that rollout_sft overrides, so that `Trainer` has to call them."""


class ReleaseError(ImportError):
    """Raised when an installed release lacks a name that rollout_sft needs."""


def check_releases(*, warn: bool = True) -> None:
    """
    Refuses installed releases that renamed what rollout_sft builds on, and warns once of versions never tested.

    Args:
        warn (`bool`, *optional*, defaults to `True`):
            Whether this process warns; one of a run does.

    Raises:
        [`ReleaseError`]: a name is gone; the message says which, and what to install.
    """
    gone = missing_names()
    if gone:
        raise ReleaseError(f"transformers {_installed('transformers')} no longer uses {', '.join(gone)}. {_advice()}")
    if warn:
        _warn_once()


@cache
def _warn_once() -> None:
    found = untested()
    if found:
        logger.warning(
            "never tested with this rollout_sft: %s. The leak probe still measures the model; docs/versions.md says "
            "what else to look at.",
            "; ".join(found),
        )


def untested() -> list[str]:
    """Describes the installed packages whose version is below the lowest or above the newest that was tested."""
    found = []
    for package, (lowest, newest) in TESTED.items():
        installed = _installed(package)
        if installed is not None and not Version(lowest) <= Version(installed) <= Version(newest):
            found.append(f"{package} {installed} (tested {lowest} to {newest})")
    return found


def missing_names(trainer: type = transformers.Trainer, gradients: type = GradientState) -> list[str]:
    """Returns the names of the tables that the installed releases no longer use."""
    used = {name for function in _functions(trainer) for name in _names(function.__code__)}
    gone = [f"Trainer.{name}" for name in TRAINER_CALLS if name not in used or not hasattr(trainer, name)]
    gone += [f"Trainer.{name}" for name in ("_tr_loss", "loss_is_scaled_for_ga") if name not in used]
    if not hasattr(gradients, "_set_sync_gradients"):
        gone.append("GradientState._set_sync_gradients of accelerate")
    return gone


def explain_import(error: ImportError) -> str | None:
    """Says which release lacks the name that could not be imported; returns None if no tested package is concerned."""
    package = (error.name or "").partition(".")[0]
    if package not in TESTED or _installed(package) is None:
        return None
    lowest, newest = TESTED[package]
    return f"{package} {_installed(package)} was tested from {lowest} to {newest}, and here: {error}. {_advice()}"


def _advice() -> str:
    """Says what to install."""
    return (
        "Install tested versions: python -m packsched.constraints > constraints.txt; pip install -c constraints.txt "
        "'packsched[train]'"
    )


def _installed(package: str) -> str | None:
    try:
        return Version(version(package)).public
    except PackageNotFoundError:
        return None


def _functions(owner: type) -> Iterator[Any]:
    for base in owner.__mro__:
        yield from (inspect.unwrap(member) for member in vars(base).values() if inspect.isfunction(member))


def _names(code: CodeType) -> Iterator[str]:
    """Yields the names and texts that a function uses, those of the functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _names(constant)
