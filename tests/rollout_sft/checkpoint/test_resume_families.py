"""Every family of the installed transformers resumes bit for bit; writes benchmarks/results/resume.json."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rollout_sft.checks.leak_probe import LeakError
from rollout_sft.user_errors import is_for_user
from tests.resumed import between, make_trainer, record, resumed_run, tiny_model, whole_run
from tests.tiny_families import VARIANTS, tiny_config
from tests.tiny_images import CONFIGS

pytestmark = pytest.mark.families

LIMIT = 300
LARGEST = 50_000_000


def cell(family):
    """The difference between the whole and the resumed run, or why there is none."""
    if family not in CONFIGS and tiny_config(family) is None:
        return "not built: the text model is nested in a multimodal configuration"
    try:
        size = sum(p.numel() for p in tiny_model(family, 0).parameters())
    except Exception as error:
        return f"not built: {_short(error)}"
    if size > LARGEST:
        return f"not built: {size / 1e6:.0f} million parameters in spite of the small sizes"
    with tempfile.TemporaryDirectory() as folder:
        try:
            whole = whole_run(family, Path(folder))
        except Exception as error:
            return f"{'refused' if is_for_user(error) else 'not trained'}: {_short(error)}"
        try:
            found = between(whole, resumed_run(family, Path(folder)))
        except Exception as error:
            return _short(error)
        return found if found == 0 else _refused(family, Path(folder)) or found


def _refused(family, folder):
    """Why the trainer does not train this family at all, with the probe that the runs above leave out."""
    try:
        make_trainer(family, tiny_model(family, 0), folder / "probed", check_isolation=True).train()
    except LeakError as error:
        return f"refused: {_short(error)}"
    return None


def _short(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def answer(writer, family):
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    torch.set_num_threads(1)
    writer.send(cell(family))


@pytest.mark.parametrize("family", sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS, *CONFIGS]))
def test_a_resumed_run_of_the_family_is_bit_equal(family):
    """In a forked process, since some configurations crash and some take minutes."""
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)
    process = fork.Process(target=answer, args=(writer, family))
    process.start()
    writer.close()
    try:
        found = reader.recv() if reader.poll(LIMIT) else f"not built: not within {LIMIT} s"
    except EOFError:
        found = "not built: the process crashed"
    process.kill()
    process.join()
    record(family, "1 rank", found)
    if isinstance(found, str) and found.startswith(("not built", "not trained", "refused")):
        pytest.skip(found)
    assert found == 0
