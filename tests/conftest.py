"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_folder() -> Path | None:
    """Reference data kept beside the checkout, or None."""
    named = os.environ.get("CORTADO_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[1].parent / "shared"
    return folder if (folder / "models").is_dir() else None


@pytest.fixture(scope="session", autouse=True)
def no_cache() -> None:
    """Every test generates its code itself, by the cost model; those of the cache and of measured choices name files of their own."""
    os.environ["CORTADO_CACHE"] = os.environ["CORTADO_TUNING"] = "off"


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("reference data absent: put it at ../shared or name it in CORTADO_SHARED")
    return folder
