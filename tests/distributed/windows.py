"""One window over all ranks, and the gradient that reaches the optimizer; a cell of the tables of families."""

import torch.distributed as dist


def train_window(trainer, *, idle_rank=None):
    """
    Trains one window and returns the names of the samples that each rank trained, in the order of its packs.

    Args:
        trainer (`RolloutSFTTrainer`):
            Its optimizer steps once; a callback catches the gradient.
        idle_rank (`int`, *optional*):
            A rank whose segments are taken away before they are scheduled.
    """
    schedule, trained = trainer.schedule.schedule, []

    def spy(micro_batches, micro_steps):
        if trainer.args.process_index == idle_rank:
            micro_batches = [[] for _ in micro_batches]
        window = schedule(micro_batches, micro_steps)
        trained.extend(s.sample_id for pack in window.packs for s in pack.segments)
        return window

    trainer.schedule.schedule = spy
    trainer.train()
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, trained)
    return everyone


def is_sharded(model):
    return any(hasattr(p, "full_tensor") for p in model.parameters())


def in_turn(first, second, size=3):
    """The order in which one rank gets the first list and the other the second, in micro-batches of `size`."""
    return [s for at in range(0, len(first), size) for s in (*first[at : at + size], *second[at : at + size])]
