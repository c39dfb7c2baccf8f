"""What holds for every test and every doctest: the same seeds, one thread, float32."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# Workers of xdist share the cores; more threads each would only make them wait for one another.
torch.set_num_threads(1)

# The same examples in every run: a red test is red for everybody. No deadline, because machines differ.
settings.register_profile("chipnet", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("chipnet")


@pytest.fixture(autouse=True)
def _same_start_for_every_test():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float32)
