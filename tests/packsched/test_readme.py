"""The README's first example runs as it stands, also on windows with idle packs."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.parametrize("lens", [(5000, 6000, 3000), (), (1,), (16384,) * 8])
def test_the_packsched_example_runs(lens):
    (code,) = re.findall(r"```python\n(import numpy[^`]*?WindowBuffer\(.*?)```", README.read_text(), re.DOTALL)
    seen = {"segments": [np.arange(length) for length in lens]}
    exec(code, seen)
    assert len(seen["window"]) == 0  # all segments were taken
    assert seen["window"].plan.pack_lens[0] == min(sum(lens), 16384)
    assert seen["input_ids"].shape == (16384 if len(lens) == 8 else 1,), "the last pack, or the dummy in its place"
