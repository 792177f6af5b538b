"""A fit of every gene by itself that ignores donors: ``python peer_glm.py DATA.npz RESULT.json``.

Negative binomial regression of the counts on the condition with the size factor as offset, by
statsmodels, and the p-value of its Wald test.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import statsmodels.api as sm


def p_value(counts: np.ndarray, design: np.ndarray, offset: np.ndarray) -> float:
    """Of the last coefficient; NaN if the fit fails."""
    start = [np.log(counts.sum() / np.exp(offset).sum()), 0.0, 0.5]
    try:
        fit = sm.NegativeBinomial(counts, design, offset=offset).fit(start, disp=0, maxiter=100)
    except (np.linalg.LinAlgError, ValueError):
        return float("nan")
    return float(fit.pvalues[1])


def main() -> None:
    """Read counts, condition and size factors; write one p-value per gene."""
    warnings.simplefilter("ignore")
    data = np.load(sys.argv[1])
    design = sm.add_constant(data["condition"].astype(float))
    offset = np.log(data["size"])
    values = [p_value(x, design, offset) for x in data["counts"].T.astype(float)]
    Path(sys.argv[2]).write_text(json.dumps(values))


if __name__ == "__main__":
    main()
