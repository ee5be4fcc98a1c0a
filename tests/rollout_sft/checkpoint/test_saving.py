"""How the files of a checkpoint are written."""

import zipfile

import torch

from rollout_sft.checkpoint.saving import _without_crc


def test_checksums_of_torch_are_left_out_and_then_computed_again(tmp_path):
    values = torch.arange(1000.0)
    with _without_crc():
        torch.save(values, tmp_path / "without.pt")
    torch.save(values, tmp_path / "with.pt")
    assert torch.equal(torch.load(tmp_path / "without.pt"), values)
    with zipfile.ZipFile(tmp_path / "without.pt") as without, zipfile.ZipFile(tmp_path / "with.pt") as usual:
        assert without.testzip() is not None, "it was computed"
        assert usual.testzip() is None
