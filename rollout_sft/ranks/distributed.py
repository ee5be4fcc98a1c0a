"""One collective in which ranks share what they know and fail together.

A rank that raises alone leaves the others waiting in their next collective until a timeout. Whatever may fail on
one rank therefore runs inside [`together`], and every rank calls it at the same point. A failure is shared once: the
first collective that carries it ends the work of every rank, however deep it is nested.

One failure cannot be shared that way: that of a rank alone in the middle of other collectives, such as a forward of
sharded weights. It goes through [`entangled`].
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

T = TypeVar("T")

_LAST_WORDS = "rollout_sft/last_words"
_SHARED = "_rollout_sft_shared"


class PeerError(RuntimeError):
    """Another rank failed; the message is that rank's."""


def together(work: Callable[[], T], *, share: Callable[[T], Any]) -> tuple[T, list[Any]]:
    """
    Runs `work` on every rank; if any rank fails, all raise.

    Args:
        work (`Callable[[], T]`):
            What may fail. It may call `together` itself, on every rank.
        share (`Callable[[T], Any]`):
            The part of the result that the other ranks need; it is pickled.

    Returns:
        `tuple[T, list[Any]]`: this rank's result, and what every rank shared, in the order of the ranks.

    Raises:
        `Exception`: on the failing rank its own exception; on the others [`PeerError`] with that rank's message.
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
            with suppress(Exception):  # nobody may be left to tell
                gather_object([(_describe(error), None)])
        raise
    try:
        reports = gather_object([report])
    except Exception as error:  # a rank that this one waited for has gone
        raise _explained(error) from error
    for rank, (message, _) in enumerate(reports):
        if message is not None:
            raise _peer_error(rank, message)
    return result, [shared for _, shared in reports]


def is_sharded(model: nn.Module) -> bool:
    """
    Whether a forward gathers parameters from other ranks, and so is a collective.

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
    Marks code that is full of collectives: a rank that fails in it leaves the others inside one of them.

    No further collective can carry the failure, since the others would take it for the one they wait in. The failing
    rank leaves its message in the rendezvous store and raises at once; when its process ends, its connections close,
    the others' collective breaks, and they raise [`PeerError`] with the message. The process must therefore end:
    do not catch the exception and go on.

    Args:
        active (`bool`, *optional*, defaults to `True`):
            False where the code happens to have no collectives, and failures may be shared as usual.
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
        _leave_last_words(PartialState().process_index, _describe(error))
        raise


def leave_together() -> None:
    """
    Ends the process group, when every rank has come here; the last thing that a program does.

    A wrapped model that outlives the group and is only destroyed with the interpreter aborts the process about once in
    ten exits (torch 2.13, gloo), so whatever is left of trainers is collected before.
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
    """What broke a collective: the last words of the rank that left it, or the error itself; marked as shared."""
    _mark_shared(error)
    if isinstance(error, Exception):
        for peer, message in _last_words():
            if peer != PartialState().process_index:
                return _peer_error(peer, message)
    return error


def _peer_error(rank: int, message: str) -> PeerError:
    error = PeerError(f"rank {rank} failed, so rank {PartialState().process_index} stops too. {message}")
    _mark_shared(error)
    return error


def _leave_last_words(rank: int, message: str) -> None:
    """Best effort: the store may have gone with the rank that kept it."""
    with suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        store.set(f"{_LAST_WORDS}/{rank}", message)


def _last_words() -> Iterator[tuple[int, str]]:
    with suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        for rank in range(PartialState().num_processes):
            key = f"{_LAST_WORDS}/{rank}"
            if store.check([key]):
                yield rank, store.get(key).decode()
