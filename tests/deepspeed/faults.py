"""Faults that are planted while a run trains, to see that the tests find them."""

from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist
from transformers import TrainerCallback

import rollout_sft.trainer


def _late(trainer):
    """The boundary step comes without synchronisation: DeepSpeed is told of it after the last backward."""
    from accelerate.utils.deepspeed import DeepSpeedEngineWrapper

    def backward(self, loss, sync_gradients=True, **kwargs):
        self.engine.set_gradient_accumulation_boundary(is_boundary=False)
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            self.engine.set_gradient_accumulation_boundary(is_boundary=True)
            self.engine.step()

    return patch.object(DeepSpeedEngineWrapper, "backward", backward)


def _early(trainer):
    """Each pack of the last micro-step steps the optimizer, not the last one alone."""

    def run(trainer, model, micro_step, train_batch):
        return sum((train_batch(batch) for batch in micro_step.batches), trainer._tr_loss * 0)

    return patch.object(rollout_sft.trainer, "run_micro_step", run)


def _shares(trainer):
    """The ranks take other shares of the window than they have; their sum is the same."""
    share = rollout_sft.trainer.share_of_window

    def exchanged(loss, **kwargs):
        return share(loss, **kwargs) * (2 / 3 if trainer.args.process_index else 4 / 3)

    return patch.object(rollout_sft.trainer, "share_of_window", exchanged)


def _weights(trainer):
    """A weight is not a number when the first checkpoint is due."""

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                weight = next(model.parameters())
                getattr(weight, "ds_tensor", weight).data.fill_(float("nan"))

    trainer.add_callback(Break)
    return nullcontext()


@contextmanager
def _exchange(trainer, *, unmarked=False):
    """The ranks' parts of the optimizer are exchanged in the checkpoint; `unmarked`: and its checksums are gone."""
    checkpoint, first = Path(trainer.args.resume_from_checkpoint), trainer.is_world_process_zero()
    mark = checkpoint / "finished"
    manifest = mark.read_bytes()
    if first:
        _swap(checkpoint)
        if unmarked:
            mark.write_bytes(b"")
    dist.barrier()
    try:
        yield
    finally:
        dist.barrier()
        if first:
            _swap(checkpoint)
            mark.write_bytes(manifest)
        dist.barrier()


def _swap(checkpoint):
    one, other = sorted(checkpoint.glob("global_step*/*optim_states.pt"))
    aside = one.with_name("aside")
    for old, new in ((one, aside), (other, one), (aside, other)):
        old.rename(new)


def _nan(trainer):
    """The loss of rank 1 is not a number in step 3."""
    share = rollout_sft.trainer.share_of_window

    def broken(loss, **kwargs):
        bad = trainer.args.process_index == 1 and trainer.state.global_step == 2
        return share(loss * float("nan") if bad else loss, **kwargs)

    return patch.object(rollout_sft.trainer, "share_of_window", broken)


FAULTS = {
    None: lambda trainer: nullcontext(),
    "late": _late,
    "early": _early,
    "shares": _shares,
    "nan": _nan,
    "weights": _weights,
    "exchanged": _exchange,
    "exchanged, unmarked": partial(_exchange, unmarked=True),
}
"""Contexts around `trainer.train`."""
