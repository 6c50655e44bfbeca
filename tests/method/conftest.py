import pytest
import torch


@pytest.fixture
def double_by_default():
    """torch.set_default_dtype(float64) while a test runs."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
