"""Quantiles of counts over observations, from histograms that grow with the values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrovi.criticism.statistics import (
    VARIABLE,
    CheckedData,
    Statistic,
    Summary,
    draw_chunks,
    refuse_other_than_counts,
)
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError

EXACT_BELOW = 64
"""Counts below it have a bin each."""

PER_OCTAVE = 32
"""Bins between a count above that and its double."""


class Quantiles(Statistic):
    """Quantiles of each variable over the observations (``quantile``), for counts.

    The quantile ``p`` is the smallest value that at least a fraction ``p`` of the observations do
    not exceed (``inverted_cdf`` of NumPy). Quantiles below 64 are exact. Above, bins are 1/32 of
    an octave wide and the quantile is the lower end of its bin: it is too low by at most 3.2 %.

    Parameters
    ----------
    probabilities
        Which quantiles.

    Raises
    ------
    ModelError
        If a probability is not between 0 and 1, or values are no counts.
    """

    def __init__(self, probabilities: Sequence[float] = (0.5, 0.9, 0.99)) -> None:
        if wrong := [p for p in probabilities if not 0 < p < 1]:
            raise ModelError(f"Quantiles are for probabilities between 0 and 1, got {wrong[0]}.")
        self.probabilities = list(probabilities)
        self._site = ""
        self._histograms: list[Tensor] = []
        self._n = 0

    def prepare(self, data: CheckedData) -> None:
        self._site = data.site

    def update(self, values: Tensor, minibatch: Minibatch) -> None:
        refuse_other_than_counts(values, self._site, "A quantile from histograms")
        draws, n, variables = values.shape
        self._n += n
        highest = int(bin_of(values.amax()))
        octaves = max(0, highest - EXACT_BELOW) // PER_OCTAVE + (highest >= EXACT_BELOW)
        while len(self._histograms) < 1 + octaves:
            # one more bin for all that belongs to the others
            bins = (PER_OCTAVE if self._histograms else EXACT_BELOW) + 1
            self._histograms.append(torch.zeros(draws, variables, bins, dtype=torch.int16))
        if self._n > torch.iinfo(torch.int16).max:
            self._histograms = [histogram.int() for histogram in self._histograms]
        start = 0
        for part in draw_chunks(values):
            self._add(part.cpu(), start)
            start += len(part)

    def _add(self, values: Tensor, start: int) -> None:
        cells = torch.arange(len(values) * values.shape[-1])
        cells = cells.reshape(len(values), 1, -1).expand(values.shape)
        _count(self._histograms[0], start, cells, values.clamp(max=EXACT_BELOW).long())
        large = values >= EXACT_BELOW
        if not large.any():
            return
        cells, bins = cells[large], bin_of(values[large]) - EXACT_BELOW
        for octave, histogram in enumerate(self._histograms[1:]):
            within = bins - octave * PER_OCTAVE
            mine = (within >= 0) & (within < PER_OCTAVE)
            _count(histogram, start, cells[mine], within[mine])

    def result(self) -> dict[str, Summary]:
        bins = sum(histogram.shape[-1] - 1 for histogram in self._histograms)
        lower_ends = value_of(torch.arange(bins))
        levels = torch.tensor(self.probabilities, dtype=torch.float64) * self._n
        # rounding must not push a level beyond the count that it equals
        wanted = (levels - 1e-9 * self._n).ceil().clamp(min=1).int()
        found = []
        for parts in zip(*(histogram.split(4) for histogram in self._histograms), strict=True):
            together = torch.cat([part[..., :-1] for part in parts], -1)
            below = together.cumsum(-1, dtype=torch.int32)
            found.append(lower_ends[torch.searchsorted(below, _for(below, wanted))])
        values = torch.cat(found).movedim(-1, 1)
        coords = {"probability": self.probabilities}
        return {"quantile": Summary(("probability", VARIABLE), values, coords)}


def _count(histogram: Tensor, start: int, cells: Tensor, bins: Tensor) -> None:
    """Count one more in a bin of each cell (draw and variable, from draw ``start`` on)."""
    size = histogram.shape[-1]
    flat = histogram[start:].view(-1)
    ones = torch.ones((), dtype=histogram.dtype).expand(cells.numel())
    flat.scatter_add_(0, (cells * size + bins).reshape(-1), ones)


def _for(part: Tensor, wanted: Tensor) -> Tensor:
    return wanted.expand(*part.shape[:-1], -1).contiguous()


def bin_of(counts: Tensor) -> Tensor:
    """Bin of each count."""
    counts = counts.double()
    octave = (counts.clamp(min=EXACT_BELOW) / EXACT_BELOW).log2().floor()
    within = (counts / (EXACT_BELOW * 2.0**octave) - 1) * PER_OCTAVE
    above = EXACT_BELOW + octave * PER_OCTAVE + within.clamp(min=0).floor()
    return torch.where(counts < EXACT_BELOW, counts, above).long()


def value_of(bins: Tensor) -> Tensor:
    """Smallest whole number in each bin."""
    beyond = (bins - EXACT_BELOW).clamp(min=0)
    octave, within = beyond // PER_OCTAVE, beyond % PER_OCTAVE
    above = EXACT_BELOW * 2.0**octave * (1 + within / PER_OCTAVE)
    return torch.where(bins < EXACT_BELOW, bins.double(), above.double().ceil())
