"""Saves checkpoints that are complete on every rank, and resumes runs from them bit for bit."""
