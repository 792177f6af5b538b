"""Labels that a classifier in the guide gives observations. Functions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._settings import settings
from pyrovi.data.categories import mapping_array
from pyrovi.data.registry import registry_state
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.model.draws import posterior_globals, resolve_num_samples, warn_if_untrained
from pyrovi.module.ledger import Role, Site
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.engine import run_query
from pyrovi.posterior.reduce import Reduction
from pyrovi.posterior.vectorise import Story

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

_PROBABILITY = "probability"


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

    num_samples = resolve_num_samples(model, num_samples)
    warn_if_untrained(model)
    manager, positions, loader = model.loader(adata, indices)
    state = registry_state(model.registry, REGISTRY_KEYS.LABELS_KEY)
    labels = mapping_array(list(state["categorical_mapping"])[:-1])
    shape: tuple[int | str, ...] = (OBS_PLATE, len(labels))
    site = Site(_PROBABILITY, Role.DETERMINISTIC, (OBS_PLATE,), shape, (OBS_PLATE, "label"), 1)

    def make_story(minibatch: Minibatch) -> Story:
        def story(_: dict[str, Tensor]) -> dict[str, Tensor]:
            return {_PROBABILITY: model.module.run("classify", minibatch).softmax(-1)}

        return story

    arrays = run_query(
        model.module,
        loader,
        make_story,
        posterior_globals(model, num_samples, seed, manager),
        {_PROBABILITY: site},
        n_obs=len(positions),
        num_draws=num_samples,
        batch_size=batch_size or settings.batch_size,
        reduction=Reduction("mean"),
        seed=seed,
    )
    probabilities = arrays[_PROBABILITY]
    names = pd.Index(np.asarray(manager.obs_names[positions]))
    if soft:
        return pd.DataFrame(probabilities, index=names, columns=pd.Index(labels))
    return pd.Series(labels[probabilities.argmax(-1)], index=names, name="label")
