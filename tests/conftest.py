"""What all tests share: torch's random numbers are the same in each run, and do not depend on the tests before.

Simulators are built in half the time: tests run them for seconds.
"""

import os

import pytest
import torch

os.environ.setdefault("ESBFLOW_CXXFLAGS", "-O1")


@pytest.fixture(autouse=True, scope="module")
def seeded_module():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded(seeded_module):
    torch.manual_seed(0)
