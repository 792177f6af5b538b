"""Symmetry of the position of the truth: in which direction a variational fit is biased (VSBC)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyrovi._rng import generator

NUM_FLIPS = 5000
"""Random sign changes that the distribution of the statistic is found from."""


def symmetry_test(pit: NDArray[np.float64], seed: int | None = None) -> float:
    """Test whether values in [0, 1] are distributed symmetrically around 1/2.

    The probability that the truth lies below a variational draw is rarely uniform: such fits are
    too narrow. If it is symmetric, the fit is at least not biased; a skewed one is biased on
    average. The statistic is the largest difference between the distribution functions of the
    values and of their mirror images; under symmetry every value is as likely as its mirror image,
    which gives its distribution without any assumption about their shape.

    Parameters
    ----------
    pit
        Values, shape ``(M,)``.
    seed
        Root seed of the random sign changes.

    Returns
    -------
    float
        The p-value.

    References
    ----------
    Yao, Vehtari, Simpson, Gelman: Yes, but did it work? Evaluating variational inference. ICML
    (2018).
    """
    centred = np.asarray(pit, dtype=np.float64) - 0.5
    distance = np.abs(centred)
    order = np.argsort(-distance, kind="stable")
    # mirror images at the same distance enter together: ranks have ties
    ends = np.append(np.diff(distance[order]) < -1e-12, True)
    signs = np.where(distance[order] < 1e-12, 0.0, np.sign(centred[order]))
    observed = np.abs(np.cumsum(signs)[ends]).max()
    rng = generator("symmetry", seed=seed)
    flips = rng.choice([-1.0, 1.0], size=(NUM_FLIPS, len(signs)))
    simulated = np.abs(np.cumsum(flips * np.abs(signs), axis=1)[:, ends]).max(1)
    return float((1 + (simulated >= observed - 1e-9).sum()) / (1 + NUM_FLIPS))
