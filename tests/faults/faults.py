"""The faults, planted into a real trainer on one of two ranks."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

import rollout_sft.checkpoint.saving
from rollout_sft.inputs.segment import Segment
from rollout_sft.targets.base import Target
from tests.faults import machine_faults

ROLLOUT, SAMPLE, WINDOW, KILL, KILL_SAVE = (
    "rollout raises",
    "bad sample",
    "window does not fit",
    "SIGKILL",
    "SIGKILL in save",
)
KINDS = (ROLLOUT, SAMPLE, WINDOW, KILL, KILL_SAVE)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong: where (`rank`), when (`step` steps were done; for a save: it is the checkpoint's), and how."""

    kind: str
    rank: int
    step: int
    how: str
    share: float = 0.0  # SIGKILL: after this share of the previous window's time


EXCHANGE = "while segments change ranks"
MANY = "too many long segments"

HOW = {
    ROLLOUT: ["before it generates", "after it has generated"],
    SAMPLE: ["no prompt_ids", "no objects", "a box of three numbers", "a desc that is no text", "the data set raises"],
    WINDOW: [MANY, "one segment too long"],
    KILL: ["at a random moment", EXCHANGE],
    # The last ones only on the rank that writes them.
    KILL_SAVE: [
        "before anything is written",
        "in the generators' state",
        "in the model",
        "in the optimizer",
        "in the carry buffer",
        "before the mark",
        "after the mark",
        "while the old checkpoint is removed",
    ],
}
RANK_0_ALONE = {"in the model", "in the optimizer", "before the mark", "after the mark", HOW[KILL_SAVE][-1]}

ONLY_IN_SCOPES = {
    "in the carry buffer": ("micro",),
    "the carry buffer": ("micro",),
    MANY: ("window", "global"),
    EXCHANGE: ("global",),
}


def plant(trainer, fault, folder):
    """Makes `fault` happen in this process, if it is its rank."""
    if fault.kind in machine_faults.KINDS:
        machine_faults.plant_machine_fault(trainer, fault, folder, note)
        return
    if fault.kind == SAMPLE:
        trainer.train_dataset = BrokenDataset(trainer, fault, folder)
        return
    if trainer.args.process_index != fault.rank:
        return
    planters = {ROLLOUT: break_rollout, WINDOW: break_window, KILL: kill_in_window, KILL_SAVE: kill_in_save}
    planters[fault.kind](trainer, fault, folder)


def note(fault, folder):
    """Leaves the time of the fault for the test to measure from; the first one counts."""
    path = Path(folder) / "fault.json"
    if not path.exists():
        path.write_text(json.dumps({**asdict(fault), "time": time.time()}))


def die(fault, folder):
    note(fault, folder)
    os.kill(os.getpid(), signal.SIGKILL)


def break_rollout(trainer, fault, folder):
    generate = trainer.generation.train.generate

    def broken(requests):
        if trainer.state.global_step == fault.step and fault.how == "before it generates":
            note(fault, folder)
            raise OSError("the engine on this rank went away")
        rollouts = generate(requests)
        if trainer.state.global_step == fault.step:
            note(fault, folder)
            raise OSError("the engine on this rank went away")
        return rollouts

    trainer.generation.train.generate = broken


class BrokenDataset(Dataset):
    """One item of the data set is broken; whichever rank draws it fails."""

    def __init__(self, trainer, fault, folder):
        self.trainer, self.inner, self.fault, self.folder = trainer, trainer.train_dataset, fault, folder

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        sample = self.inner[index]
        if index != self.fault.step or not self.trainer.is_in_train:
            return sample
        note(self.fault, self.folder)
        if self.fault.how == "the data set raises":
            raise OSError("the file of this sample cannot be read")
        if self.fault.how == "no prompt_ids":
            return {k: v for k, v in sample.items() if k != "prompt_ids"}
        if self.fault.how == "no objects":
            return {k: v for k, v in sample.items() if k != "objects"}
        found = dict(sample["objects"][0])
        if self.fault.how == "a box of three numbers":
            found["bbox_2d"] = found["bbox_2d"][:3]
        else:
            found["desc"] = 7
        return {**sample, "objects": [found]}


def break_window(trainer, fault, folder):
    build = trainer.target_builder.build
    length = trainer.args.packing_length
    if fault.how != MANY:
        length += 1
    elif trainer.args.post_rollout_pack_scope == "window":
        length = length // 2 + 1  # in scope global they fill the packs of both ranks

    def broken(sample, rollout):
        target = build(sample, rollout)
        if trainer.state.global_step != fault.step:
            return target
        note(fault, folder)
        segment = Segment.from_lists([5] * length, [5] * length, [1.0] * (length - 1) + [0.0])
        return Target(segment=segment, counters=target.counters)

    trainer.target_builder.build = broken


def kill_in_window(trainer, fault, folder):
    """After a share of the time that the window before took, or while segments change ranks."""
    if fault.how == EXCHANGE:
        exchange = torch.distributed.batch_isend_irecv

        def dying(operations):
            if trainer.state.global_step != fault.step:
                return exchange(operations)
            return die(fault, folder)

        torch.distributed.batch_isend_irecv = dying
        return
    original, began = trainer.get_batch_samples, [0.0]

    def get_batch_samples(*args):
        now = time.monotonic()
        if trainer.state.global_step == fault.step:
            wait = fault.share * (now - began[0])
            threading.Timer(wait, die, (fault, folder)).start()
        began[0] = now
        return original(*args)

    trainer.get_batch_samples = get_batch_samples


def kill_in_save(trainer, fault, folder):
    def dying(original, *, half=None, after=False):
        """`original`, but at the right checkpoint this process dies in it; `half`: which file is left half-written."""

        def call(*args, **kwargs):
            if trainer.state.global_step == fault.step:
                if half is not None:
                    half(*args)
                if after:
                    original(*args, **kwargs)
                die(fault, folder)
            return original(*args, **kwargs)

        return call

    def half_model(output_dir, *_):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        (Path(output_dir) / "model.safetensors").write_bytes(b"half")

    product = rollout_sft.checkpoint.saving
    if fault.how == "before anything is written":
        trainer._save_checkpoint = dying(trainer._save_checkpoint)
    elif fault.how == "in the model":
        trainer._save = dying(trainer._save, half=half_model)
    elif fault.how == "before the mark":
        product.mark_finished = dying(product.mark_finished)
    elif fault.how == "after the mark":
        product.mark_finished = dying(product.mark_finished, after=True)
    elif fault.how == "while the old checkpoint is removed":
        product.rotate_checkpoints = dying(lambda **_: None, half=lambda *_: half_removed(folder, fault.step))
    else:
        begins = {
            "in the generators' state": "rng_state",
            "in the optimizer": "optimizer",
            "in the carry buffer": "carry_buffer",
        }[fault.how]
        save = torch.save

        def half_file(obj, target, *_):
            Path(str(target)).write_bytes(b"half")

        def dying_save(obj, target, *args, **kwargs):
            if Path(str(target)).name.startswith(begins):
                return dying(save, half=half_file)(obj, target, *args, **kwargs)
            return save(obj, target, *args, **kwargs)

        torch.save = dying_save


def half_removed(folder, step):
    """Half of the files of the older checkpoint are gone, its mark is still there."""
    old = folder / f"checkpoint-{step - 2}"
    if old.is_dir():
        files = sorted(p for p in old.iterdir() if p.name != "finished")
        for path in files[: len(files) // 2]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
