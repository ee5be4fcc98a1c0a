"""What the benchmarks that train small models share: arguments, and a builder of segments of given lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rollout_sft import Target
from rollout_sft.inputs.segment import Segment

ON_CPU: dict[str, Any] = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
"""Arguments of a run on a CPU that reports to no service, saves nothing and shows no bar."""


class OfLength:
    """Makes a segment of random tokens as long as the sample says, a twelfth of it supervised."""

    def build_reference(self, sample: Mapping[str, Any]) -> Target:
        generator = torch.Generator().manual_seed(int(sample["id"]))
        ids = torch.randint(5, 90, (sample["length"],), generator=generator).tolist()
        weights = [float(at % 12 == 0) for at in range(len(ids) - 1)] + [0.0]
        return Target(segment=Segment.from_lists(ids, ids, weights, sample_id=sample["id"]), counters={})

    def build(self, sample: Mapping[str, Any], rollout: object) -> Target:
        return self.build_reference(sample)

    def score(self, sample: Mapping[str, Any], rollout: object) -> dict[str, tuple[float, float]]:
        return {}
