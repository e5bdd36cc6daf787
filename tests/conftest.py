"""What all tests share: folders beside the checkout, the shipped weights, and the same random numbers every time."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"
os.environ["CLAY_PRECISION"] = "exact"  # the same numbers on every machine; test_precision.py asks for others


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs the {name} folder beside the checkout, which is not part of the project")
    return path


@pytest.fixture(scope="session")
def goldens() -> Path:
    return _folder("goldens")


@pytest.fixture(scope="session")
def realdata() -> Path:
    return _folder("realdata")


@pytest.fixture(scope="session")
def mini():
    """The shipped weights."""
    from clay_lib import Clay

    return Clay.load("clay-mini")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
