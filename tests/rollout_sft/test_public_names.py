"""What `import rollout_sft` gives, and what it says where the extra is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

import rollout_sft

ROOT = Path(__file__).parents[2]
NAMES = {
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
}


def test_the_public_names_are_those_that_a_user_needs():
    assert set(rollout_sft.__all__) == NAMES
    assert all(hasattr(rollout_sft, name) for name in NAMES)


@pytest.mark.parametrize("hidden", ["torch", "transformers", "accelerate"])
def test_without_the_extra_the_import_says_what_to_install(hidden):
    program = f"import sys; sys.modules[{hidden!r}] = None; import rollout_sft"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: rollout_sft needs {hidden}, which is not installed. Install what training needs: "
        "pip install 'packsched[train]'"
    )
