"""Named random streams derived from one seed.

Each purpose (data split, initialisation, training, draws, ...) has its own stream, a pure function
of ``settings.seed`` and the words that name it. Streams do not disturb one another or the caller's
random state, which is what makes runs repeatable and queries side-effect free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pyrovi._settings import settings


def derive_seed(*purpose: str | int, seed: int | None = None) -> int:
    """Seed (63 bits) for a purpose, derived from ``seed`` (default: ``settings.seed``).

    Parameters
    ----------
    purpose
        Words and numbers that name the stream, e.g. ``("local", 3)``.
    seed
        Root seed; ``None`` takes ``settings.seed``.
    """
    root = settings.seed if seed is None else int(seed)
    text = "\x1f".join([str(root), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*purpose: str | int, seed: int | None = None) -> np.random.Generator:
    """NumPy generator of a named stream."""
    return np.random.default_rng(derive_seed(*purpose, seed=seed))


@contextmanager
def stream(*purpose: str | int, seed: int | None = None) -> Iterator[None]:
    """Run torch (all devices) on a named stream; the previous random state returns on exit."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(*purpose, seed=seed))
        yield


@contextmanager
def root_seed(seed: int | None) -> Iterator[None]:
    """Use another value of ``settings.seed`` inside; ``None`` changes nothing."""
    before = settings.seed
    settings.seed = before if seed is None else int(seed)
    try:
        yield
    finally:
        settings.seed = before
