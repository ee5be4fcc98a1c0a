"""The README's first example runs as it stands, also on windows with idle packs."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.parametrize("lens", [(5000, 6000, 3000), (), (1,), (16384,) * 8])
def test_the_packsched_example_runs(lens):
    (code,) = re.findall(r"```python\n(from packsched import WindowBuffer\n.*?)```", README.read_text(), re.DOTALL)
    seen = {"segments": [np.arange(length) for length in lens]}
    exec(code, seen)
    assert len(seen["window"]) == 0  # all segments were taken
    if lens:
        assert seen["input_ids"].shape == (min(sum(lens), 16384),)
