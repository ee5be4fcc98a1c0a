"""Trains four steps in waves and saves after each; `kill` ends it like kill -9 between two waves of the third step."""

import json
import os
import signal
import sys
from pathlib import Path

from rollout_sft.checkpoint.manifest import last_finished_checkpoint
from tests.waves import lines, run, wave_trainer


def die_between_waves(trainer):
    compute = trainer.compute_loss

    def dying(*args, **kwargs):
        if trainer.state.global_step == 2 and not trainer.denominator.is_settled:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(*args, **kwargs)

    trainer.compute_loss = dying


def main(folder, waves, what):
    trainer = wave_trainer(folder / "run", waves, max_steps=4, save_strategy="steps", save_steps=1)
    if what == "kill":
        die_between_waves(trainer)
    last = last_finished_checkpoint(folder / "run") if what == "resume" else None
    run(trainer, last)
    early = [line["packing/early_packs"] for line in lines(trainer)]
    result = {"hashes": trainer.catch.hashes, "waits": trainer.backend.waits, "early": early}
    (folder / f"{what}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
