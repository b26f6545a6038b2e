"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of published weights, ground truth and reference outputs; tests without it are skipped."""
    folder = Path(os.environ.get("RETINAFACE_REFERENCE", REPOSITORY.parent / "shared"))
    if not (folder / "fixtures").is_dir():
        pytest.skip(f"no reference data at {folder}; set RETINAFACE_REFERENCE to its folder")
    return folder
