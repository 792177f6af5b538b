"""What all tests share: threads, real data, and a clean process after each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import hypothesis
import pyro
import pytest
import torch

from pyrovi._settings import Settings, settings

# Workers of pytest-xdist share the machine: more threads each would only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

# Examples are the same in every run, and a slow machine is no failure.
hypothesis.settings.register_profile("pyrovi", deadline=None, derandomize=True)
hypothesis.settings.load_profile("pyrovi")


@pytest.fixture
def pyrovi_data() -> Path:
    """Folder of real data sets that the environment variable PYROVI_DATA names."""
    folder = os.environ.get("PYROVI_DATA")
    if not folder:
        pytest.skip("needs real data: set PYROVI_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.skip(f"needs real data: PYROVI_DATA={folder} is no folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Settings return to their defaults, and Pyro's global parameter store has to stay empty.

    A test that uses the store on purpose (classic ``pyro.infer.SVI``) clears it before it ends.
    """
    yield
    for option in fields(Settings):
        setattr(settings, option.name, option.default)
    leaked = sorted(pyro.get_param_store())
    if leaked:
        pyro.clear_param_store()
        pytest.fail(f"the test left parameters in Pyro's global store: {', '.join(leaked)}")
