"""Lets ranks share results and fail together, in one collective.

A rank that raises alone leaves the others waiting in their next collective until a timeout. Therefore code that may
fail on one rank runs inside [`together`], and every rank calls it at the same point. A failure is shared once: the
first collective that carries it ends the work of every rank, at any depth of nesting.

One failure cannot be shared in this way: a rank that fails alone in the middle of other collectives, such as a forward
of sharded weights. [`entangled`] handles it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from rollout_sft.reporting.stopwatch import phase

T = TypeVar("T")

_MESSAGES = "rollout_sft/messages"
_SHARED = "_rollout_sft_shared"


class PeerError(RuntimeError):
    """Raised on a rank because another rank failed; holds the message of that rank."""


def together(work: Callable[[], T], *, share: Callable[[T], Any]) -> tuple[T, list[Any]]:
    """
    Runs `work` on every rank; if it fails on any rank, all ranks raise.

    Args:
        work (`Callable[[], T]`):
            The code that may fail. It may call `together` itself, on every rank.
        share (`Callable[[T], Any]`):
            Returns the part of the result that the other ranks need; it is pickled.

    Returns:
        `tuple[T, list[Any]]`: this rank's result, and what every rank shared, in the order of the ranks.

    Raises:
        `Exception`: the failing rank raises its own exception.
        [`PeerError`]: the other ranks raise it, with that rank's message.
    """
    state = PartialState()
    if state.num_processes == 1:
        result = work()
        return result, [share(result)]
    try:
        result = work()
        report = (None, share(result))
    except Exception as error:
        if not getattr(error, _SHARED, False):
            _mark_shared(error)
            with suppress(Exception):  # the other ranks may have ended
                gather_object([(_describe(error), None)])
        raise
    try:
        with phase("wait"):
            reports = gather_object([report])
    except Exception as error:  # a rank that this one waited for has ended
        raise _explained(error) from error
    for rank, (message, _) in enumerate(reports):
        if message is not None:
            raise _peer_error(rank, message)
    return result, [shared for _, shared in reports]


def is_sharded(model: nn.Module) -> bool:
    """
    Returns whether a forward gathers parameters from other ranks, and so is a collective.

    Args:
        model (`nn.Module`):
            The model, wrapped or not.

    Returns:
        `bool`: True for FSDP, FSDP2 and DeepSpeed ZeRO-3.
    """
    kinds = (FSDPModule, FullyShardedDataParallel)
    return is_deepspeed_zero3_enabled() or any(isinstance(module, kinds) for module in model.modules())


@contextmanager
def entangled(active: bool = True) -> Iterator[None]:
    """
    Shares a failure inside code that runs collectives, where the other ranks wait inside one of them.

    No further collective can carry the failure, because the other ranks would mistake it for the one they wait in. So
    the failing rank writes its message to the rendezvous store and raises at once. When its process ends, its
    connections close, the collective of the other ranks breaks, and they raise [`PeerError`] with the message. The
    process must therefore end: do not catch the exception and go on.

    Args:
        active (`bool`, *optional*, defaults to `True`):
            False where the code has no collectives, so that failures are shared as usual.
    """
    if not active or PartialState().num_processes == 1:
        yield
        return
    try:
        yield
    except BaseException as error:  # an interrupt from the keyboard as well
        if getattr(error, _SHARED, False):
            raise
        explained = _explained(error)
        if explained is not error:
            raise explained from error
        _leave_message(PartialState().process_index, _describe(error))
        raise


def leave_together() -> None:
    """
    Waits for every rank and ends the process group; call it last in a program.

    A wrapped model that outlives the group and is destroyed with the interpreter aborts the process in about one of
    ten exits (torch 2.13, gloo). So the remaining trainers are collected first.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def _describe(error: BaseException) -> str:
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])


def _mark_shared(error: BaseException) -> None:
    setattr(error, _SHARED, True)


def _explained(error: BaseException) -> BaseException:
    """Returns what broke a collective, marked as shared: the error of the rank that left it, or `error` itself."""
    _mark_shared(error)
    if isinstance(error, Exception):
        for peer, message in _messages_left():
            if peer != PartialState().process_index:
                return _peer_error(peer, message)
    return error


def _peer_error(rank: int, message: str) -> PeerError:
    error = PeerError(f"rank {rank} failed, so rank {PartialState().process_index} stops too. {message}")
    _mark_shared(error)
    return error


def _leave_message(rank: int, message: str) -> None:
    """Writes the message to the store; ignores failures, since the store may have ended with its rank."""
    with suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        store.set(f"{_MESSAGES}/{rank}", message)


def _messages_left() -> Iterator[tuple[int, str]]:
    with suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        for rank in range(PartialState().num_processes):
            key = f"{_MESSAGES}/{rank}"
            if store.check([key]):
                yield rank, store.get(key).decode()
