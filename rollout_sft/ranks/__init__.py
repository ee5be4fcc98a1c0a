"""Agreement and exchange between the processes of a run."""
