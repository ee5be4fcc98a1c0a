"""Checkpoints that are complete on every rank or do not count, and runs that resume from them bit for bit."""
