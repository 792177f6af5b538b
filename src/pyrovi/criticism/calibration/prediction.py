"""Leave-one-out probability integral transforms, local latents integrated out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi._rng import generator
from pyrovi._settings import settings
from pyrovi.criticism.calibration.result import Calibration
from pyrovi.criticism.leave_one_out import refuse_point_estimates
from pyrovi.criticism.num_draws import many_draws
from pyrovi.criticism.replicated import observed_site
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.model.draws import posterior_globals, warn_if_untrained
from pyrovi.model.marginal import marginal_log_likelihood
from pyrovi.posterior.engine import stream_query
from pyrovi.posterior.pareto import khat_threshold, psis
from pyrovi.posterior.replication import Replication

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass


@dataclass(frozen=True, repr=False)
class LooPit(Calibration):
    """Result of :func:`loo_pit`.

    Attributes
    ----------
    khat
        Pareto shape of the leave-one-out weights of each observation.
    khat_threshold
        Largest reliable one.
    """

    khat: pd.Series | None = None
    khat_threshold: float = np.nan

    def summary(self) -> str:
        """The verdict in a few lines."""
        assert self.khat is not None
        lines = [super().summary()]
        if (bad := int((self.khat > self.khat_threshold).sum())) > 0:
            lines.append(
                f"  {bad} of {len(self.khat)} observations have unreliable weights (k-hat above "
                f"{self.khat_threshold:.2f}): the posterior without them is far from that with them"
            )
        return "\n".join(lines)


def loo_pit(
    model: BaseModelClass,
    site: str | None = None,
    *,
    num_samples: int | None = None,
    num_inner: int = 100,
    indices: Any = None,
    batch_size: int | None = None,
    probability: float = 0.95,
    seed: int | None = None,
) -> LooPit:
    r"""Probability integral transform of each observation, predicted from all others.

    .. math:: u_n = P(\tilde x_n \le x_n \mid x_{-n})
              \approx \sum_s w_{sn} \, 1[\tilde x_{sn} \le x_n], \qquad
              w_{sn} \propto 1 / p(x_n \mid g_s)

    with Pareto-smoothed weights. Without :math:`x_n` nothing is known of its local latents but
    their prior, so :math:`\tilde x_{sn}` is drawn from :math:`p(z_n \mid g_s) \, p(x_n \mid z_n,
    g_s)`, and :math:`p(x_n \mid g_s)` has the local latents integrated out. For discrete data the
    probability of the observed value itself is randomised. Under a well calibrated model the
    transforms are uniform; U-shaped ones belong to predictions that are too narrow.

    Parameters
    ----------
    model
        A fitted model with global latents (without, the predictions are in-sample).
    site
        Observed site with one value, or one row of values, per observation; ``None``: the only one.
    num_samples
        Number of posterior draws; ``None``: all stored ones, or 1000 of a guide.
    num_inner
        Draws of the local latents for each, to integrate them out.
    indices
        Observations; ``None`` for those that were trained on.
    batch_size, seed
        As in :meth:`~pyrovi.model.BaseModelClass.sample_posterior`.
    probability
        Probability that a calibrated model passes. The transforms of one data set are not quite
        independent, and of several variables of one observation not at all; the verdict allows for
        the latter (Holm), not for the former.

    Returns
    -------
    LooPit
        One row for each observation, one column for each variable.

    Raises
    ------
    ModelError
        If the model has point estimates, which have seen every observation, or the site does not
        fit.

    References
    ----------
    Gelfand, Dey, Chang: Model determination using predictive distributions. Bayesian Statistics 4,
    147-167 (1992).

    Czado, Gneiting, Held: Predictive model assessment for count data. Biometrics 65, 1254-1261
    (2009).

    Vehtari, Gelman, Gabry: Practical Bayesian model evaluation using leave-one-out
    cross-validation and WAIC. Statistics and Computing 27, 1413-1432 (2017).
    """
    import pandas as pd

    checked = observed_site(model, site)
    warn_if_untrained(model)
    refuse_point_estimates(model, seed)
    num_samples = many_draws(model, num_samples)
    chosen = model.train_indices if indices is None else indices
    manager, positions, loader = model.loader(
        None, resolve_indices(chosen, model.adata_manager.n_obs)
    )
    likelihood = marginal_log_likelihood(
        model,
        num_samples=num_samples,
        num_inner=num_inner,
        indices=positions,
        batch_size=batch_size,
        seed=seed,
    )["log_likelihood"]
    log_weights, khat = psis(-likelihood.values.astype(np.float64))
    weights = np.exp(log_weights)
    replication = Replication(model.module, [checked.name], prior=True)
    rng = generator("loo pit", seed=seed)
    parts: list[NDArray[np.float64]] = []
    start = 0
    for minibatch, draws in stream_query(
        model.module,
        loader,
        replication,
        posterior_globals(model, num_samples, seed, manager),
        {checked.name: checked},
        num_draws=num_samples,
        batch_size=batch_size or settings.batch_size,
        seed=seed,
    ):
        shape = (num_samples, minibatch.n, -1)
        replicated = draws[checked.name].reshape(shape).cpu().numpy()
        observed = replication.observed[checked.name].reshape(minibatch.n, -1).cpu().numpy()
        own = weights[:, start : start + minibatch.n]
        parts.append(_transform(replicated, observed, own, rng))
        start += minibatch.n
    coords = model.coords(manager, positions)
    dims = [dim for dim in checked.dims[1:] if dim is not None]
    names = coords(dims[0]) if dims else None
    values = np.concatenate(parts)
    if not dims:
        names = np.array([checked.name])
    elif names is None:
        names = np.array([f"{checked.name}[{k}]" for k in range(values.shape[1])])
    index = pd.Index(np.asarray(manager.obs_names[positions]), name="obs")
    return LooPit(
        f"Leave-one-out predictions of {checked.name}",
        pd.DataFrame(values, index=index, columns=names),
        None,
        None,
        probability,
        pd.Series(khat, index=index, name="khat"),
        khat_threshold(num_samples),
    )


def _transform(
    replicated: NDArray[Any],
    observed: NDArray[Any],
    weights: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Weighted, randomised transforms of a minibatch, shape ``(n, d)``."""
    below = np.einsum("sn,snd->nd", weights, replicated < observed)
    equal = np.einsum("sn,snd->nd", weights, replicated == observed)
    return np.asarray(np.clip(below + rng.uniform(size=equal.shape) * equal, 0.0, 1.0))
