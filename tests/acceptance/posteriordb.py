"""Reference posteriors: where they are, and what of them is compared."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tests.acceptance.stories import CASES
from torch.distributions import biject_to


@dataclass(frozen=True)
class Reference:
    """One case: its data, draws and Gaussian summary.

    Parameters
    ----------
    name
        Name of the folder.
    folder
        The folder.
    """

    name: str
    folder: Path

    @cached_property
    def data(self) -> Any:
        return json.loads((self.folder / "data.json").read_text())

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Mean and sd of every scalar of 10,000 reference draws."""
        return pd.read_csv(self.folder / "summary.csv", index_col="name")

    @cached_property
    def draws(self) -> tuple[list[str], np.ndarray]:
        file = np.load(self.folder / "draws.npz", allow_pickle=False)
        return [str(n) for n in file["names"]], file["draws"].reshape(-1, len(file["names"]))

    @cached_property
    def gaussian(self) -> dict[str, Any]:
        """Mean and sd in unconstrained space, and what an exact mean-field fit must have."""
        everything = json.loads((self.folder.parent / "gaussian_targets.json").read_text())
        case: dict[str, Any] = everything[self.name]
        return case

    def story(self) -> tuple[Any, Any]:
        return CASES[self.name](self.data)


def constrained(draws: Any, names: list[str]) -> np.ndarray:
    """Draws of scalars called ``beta[1]`` (indices from 1), shape (chain, draw, scalar)."""
    columns = []
    for name in names:
        site, *index = re.findall(r"[^\[\],]+", name)
        values = draws[site].values
        columns.append(values[(..., *(int(i) - 1 for i in index))])
    return np.stack(columns, -1).astype(float)


def unconstrained(model: Any, draws: Any, labels: list[str]) -> np.ndarray:
    """Draws of unconstrained coordinates called ``beta[0]`` (indices from 0), shape (draw, n)."""
    columns = []
    for label in labels:
        site, *index = re.findall(r"[^\[\],]+", label)
        values = torch.as_tensor(draws[site].values, dtype=torch.float64)
        moved = biject_to(model.sites[site].support).inv(values).numpy()
        columns.append(moved[(..., *(int(i) for i in index))])
    return np.stack(columns, -1)


def skewness(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    return (centred**3).mean(0) / values.std(0) ** 3
