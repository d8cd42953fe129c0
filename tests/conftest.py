"""Shared by all tests: one thread, hypothesis without deadlines or files, and a few small data sets."""

import os
from dataclasses import replace

import pytest
import torch
import typechecked
from hypothesis import settings

typechecked.install()

# Tests fork: pyarrow, which transformers brings, is to start no thread (it looks when it is loaded).
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")

REAL_DATA = os.environ.get("KDLAB_DATA")  # before any test changes it

settings.register_profile("kdlab", deadline=None, max_examples=40, database=None, derandomize=True)
settings.load_profile("kdlab")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _memory():
    """Steps of training are shorter so. (Imported here: what does not import is for a test to say.)"""
    from kdlab.training.memory import keep_freed_memory

    keep_freed_memory()


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No test reads the user's data, follows their environment or changes another test's random numbers."""
    monkeypatch.setenv("KDLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KDLAB_OFFLINE", "1")
    for name in ("KDLAB_BOOK", "KDLAB_TRACE"):
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits():
    """The digits, with few images in each split."""
    from kdlab.data import load_digits

    data = load_digits()
    return replace(data, train=data.train[:96], validation=data.validation[:48], test=data.test[:64])


@pytest.fixture
def linear():
    """A function that makes the smallest student: the same weights for the same seed."""

    def make(seed=0):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))

    return make


@pytest.fixture
def resnet():
    """A function that makes a ResNet-8 for the digits: the same weights for the same seed."""
    from kdlab.models import resnet8

    def make(seed=0):
        torch.manual_seed(seed)
        return resnet8(10)

    return make
