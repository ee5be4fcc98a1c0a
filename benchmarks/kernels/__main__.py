"""Runs the comparison; see [`~benchmarks.kernels.compare`]."""

from benchmarks.kernels.compare import main

main()
