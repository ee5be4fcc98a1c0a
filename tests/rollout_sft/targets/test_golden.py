"""`prefix_supervision: coordinates` builds, bit for bit, what was built before there was a choice."""

import json

from tests.rollout_sft.targets.golden.record import FILE, build, cases, recorded


def test_coordinates_are_supervised_as_they_were_recorded():
    golden = json.loads(FILE.read_text())
    seen = {key: json.loads(json.dumps(recorded(build(*case)))) for key, *case in cases()}
    assert seen.keys() == golden.keys()
    wrong = [key for key in golden if seen[key] != golden[key]]
    assert wrong == []
    matched = [value["counters"]["rollout/matched"][0] for value in golden.values()]
    corrected = [value["other_targets"] for value in golden.values()]
    assert sum(map(bool, matched)) > 100, "most answers must have something to supervise"
    assert sum(map(bool, corrected)) > 50
    assert any(value["counters"]["rollout/unaligned_slots"][0] for value in golden.values())
