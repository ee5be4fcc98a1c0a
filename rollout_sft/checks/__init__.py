"""What is measured or refused before it could train wrongly: the leak probe, equivalence, unsupported setups."""
