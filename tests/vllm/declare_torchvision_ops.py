"""Lets `import torchvision` work beside a torch for CPUs; run once, in the environment of constraints-vllm.txt.

The package index has torchvision for CUDA alone, whose library does not load here. Image processors need its Python
code only, but its import names two operators of that library. This declares them in the installed file, so that every
process of vLLM finds them. torchvision from PyTorch's index of CPU builds does not need it.
"""

import importlib.util
from pathlib import Path

DECLARATION = """

# Added by tests/vllm/declare_torchvision_ops.py
if not _has_ops():
    _operators = torch.library.Library("torchvision", "DEF")
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main():
    """Appends the declaration, unless it is there."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None, "torchvision is not installed"
    file = Path(str(spec.origin)).with_name("extension.py")
    text = file.read_text(encoding="utf-8")
    if DECLARATION not in text:
        file.write_text(text + DECLARATION, encoding="utf-8")


if __name__ == "__main__":
    main()
