"""Trains on several machines with Slurm; see `submit.py`."""
