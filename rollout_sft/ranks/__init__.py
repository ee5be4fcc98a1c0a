"""Shares results and failures between the processes of a run."""
