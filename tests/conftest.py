"""Where tests find what the project does not ship: goldens and real imagery, beside the checkout."""

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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
