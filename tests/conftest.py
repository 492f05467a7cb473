"""Settings every test shares: few threads, no hub, reproducible hypothesis."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# The models of most tests are tiny: a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("tutelage", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("tutelage")


@pytest.fixture(autouse=True)
def fixed_torch_seed() -> None:
    torch.manual_seed(0)
