"""Gradients of packs through real kernels, on a GPU or in Triton's interpreter."""
