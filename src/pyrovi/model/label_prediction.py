"""Labels that a classifier in the guide gives observations. Functions of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import generator
from pyrovi._settings import settings
from pyrovi.data.categories import mapping_array
from pyrovi.data.registry import registry_state
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.dataloaders.semi_supervised import label_codes
from pyrovi.model.draws import posterior_globals, resolve_num_samples, warn_if_untrained
from pyrovi.module.ledger import Role, Site
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.engine import run_query
from pyrovi.posterior.reduce import ReduceSpec, Reduction
from pyrovi.posterior.vectorise import Story

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

_LARGEST_LOG_TEMPERATURE, _PRIOR_SCALE = 5.0, 1.0
_DRAWS, _MAX_OBSERVATIONS = 50, 5_000


def predict(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    soft: bool = False,
    batch_size: int | None = None,
    *,
    num_samples: int | None = 100,
    seed: int | None = None,
) -> pd.Series | pd.DataFrame:
    r"""Label of each observation, as the classifier sees it, whether it has one already or not.

    .. math:: q(c_n \mid x_n) \approx \frac1S \sum_s q(c_n \mid z_n^{(s)}),
              \qquad z_n^{(s)} \sim q(z_n \mid x_n)

    The probabilities are calibrated by held-out labels (see :func:`fit_temperature`), if training
    left some labelled observations for validation.

    Parameters
    ----------
    adata, indices, batch_size, seed
        As in :meth:`sample_posterior`. ``adata`` need not have the column of labels.
    soft
        Return the probabilities of the labels.
    num_samples
        Number of draws ``S`` that the probabilities are averaged over.

    Returns
    -------
    pandas.Series or pandas.DataFrame
        The most probable label of each observation, in the index the names of the observations
        (scvi-tools returns an array without names); with ``soft`` the probabilities, observations x
        labels.

    Raises
    ------
    ModelError
        If ``num_samples`` is not positive.
    """
    import pandas as pd

    state = registry_state(model.registry, REGISTRY_KEYS.LABELS_KEY)
    labels = mapping_array(list(state["categorical_mapping"])[:-1])
    num_samples = resolve_num_samples(model, num_samples)
    warn_if_untrained(model)
    options: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed}
    probabilities, names = _classified(model, adata, indices, _probabilities, "mean", **options)
    if soft:
        return pd.DataFrame(probabilities, index=names, columns=pd.Index(labels))
    return pd.Series(labels[probabilities.argmax(-1)], index=names, name="label")


def fit_temperature(model: BaseModelClass, indices: Any) -> float:
    r"""Temperature of the classifier that held-out labels are most probable under.

    .. math:: \hat T = \arg\max_{T \ge 1} \sum_n \log \frac1S \sum_s
              \mathrm{softmax}(\mathrm{logits}(z_n^{(s)}) / T)_{y_n} - \tfrac12 (\log T)^2

    A classifier that knows its training labels by heart is too sure of itself. One that is not sure
    enough needs more epochs: below 1 the maximum would follow the noise of few held-out labels. The
    last term, a half-normal prior of :math:`\log T` with scale 1, keeps a handful of labels from
    saying much.

    Parameters
    ----------
    model
        A model whose module divides the logits of ``classify`` by its buffer ``temperature``.
    indices
        Observations that training has not seen; those without a label are left out. Of many, a
        seeded sample is taken.

    Returns
    -------
    float
        The temperature; 1 if none of the observations has a label.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks. ICML (2017).
    """
    codes, labelled = label_codes(model.adata_manager)
    indices = np.asarray(indices, dtype=np.int64)
    indices = indices[labelled[indices]]
    if not len(indices):
        return 1.0
    if len(indices) > _MAX_OBSERVATIONS:
        chosen = generator("temperature").choice(len(indices), _MAX_OBSERVATIONS, replace=False)
        indices = indices[np.sort(chosen)]
    logits, _ = _classified(model, None, indices, Tensor.double, None, num_samples=_DRAWS)
    logits = logits * model.module.temperature.item()
    rows = np.arange(len(indices))

    def loss(log_temperature: float) -> float:
        log_q = log_softmax(logits / np.exp(log_temperature), -1)[:, rows, codes[indices]]
        fit = float((logsumexp(log_q, 0) - np.log(len(log_q))).sum())
        return 0.5 * (log_temperature / _PRIOR_SCALE) ** 2 - fit

    bounds = (0.0, _LARGEST_LOG_TEMPERATURE)
    found = minimize_scalar(loss, bounds=bounds, method="bounded").x
    return float(np.exp(found)) if loss(found) < loss(0.0) else 1.0


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _classified(
    model: BaseModelClass,
    adata: Any,
    indices: Any,
    transform: Callable[[Tensor], Tensor],
    reduce: ReduceSpec,
    *,
    num_samples: int,
    batch_size: int | None = None,
    seed: int | None = None,
) -> tuple[np.ndarray, pd.Index]:
    """What the classifier says of observations, for each draw or averaged, and their names."""
    import pandas as pd

    manager, positions, loader = model.loader(adata, indices)
    n_labels = model.summary_stats.n_labels - 1  # the last category is "not labelled"
    site = Site("labels", Role.DETERMINISTIC, (OBS_PLATE,), (OBS_PLATE, n_labels),
                (OBS_PLATE, "label"), 1)  # fmt: skip

    def make_story(minibatch: Minibatch) -> Story:
        def story(_: dict[str, Tensor]) -> dict[str, Tensor]:
            return {site.name: transform(model.module.run("classify", minibatch))}

        return story

    arrays = run_query(
        model.module,
        loader,
        make_story,
        posterior_globals(model, num_samples, seed, manager),
        {site.name: site},
        n_obs=len(positions),
        num_draws=num_samples,
        batch_size=batch_size or settings.batch_size,
        reduction=Reduction(reduce),
        seed=seed,
    )
    return arrays[site.name], pd.Index(np.asarray(manager.obs_names[positions]))
