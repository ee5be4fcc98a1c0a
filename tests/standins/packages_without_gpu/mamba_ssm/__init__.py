"""Stands in for the packages of GPU kernels on a machine without a GPU: imports, and raises what Triton raises."""
