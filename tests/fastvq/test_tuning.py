import pytest
import torch

from fastvq import tuning


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_kernels_there_is_nothing_to_tune(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("a card is here: there is something to tune")
    with pytest.raises(RuntimeError, match=f"nothing to tune on {device}: "):
        list(tuning.tune(device))
