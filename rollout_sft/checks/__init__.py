"""Refuses what would train wrongly: the leak probe, the equivalence check, unsupported setups."""
