import os

# Cells are forked, and a process that has asked the CUDA runtime for its devices cannot be. This makes torch ask NVML.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
