"""Stands in for GPU kernels, exactly: real signatures and checks in plain torch, so that the code that calls them runs.

`packages/` holds a `flash_attn` that transformers imports as the real one. `kernels` switches it on, and puts a CPU
kernel below torch's own varlen operator. They show wrong arguments, borders and lengths; they say nothing about
the rounding or the speed of a GPU.
"""
