"""The hardware of this machine."""

import pytest
import torch

needs_no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a GPU, which the test must not see"
)
