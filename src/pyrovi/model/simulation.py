"""Simulated data: one joint draw of everything a model observes, in the form of its own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from pyrovi._rng import stream
from pyrovi._settings import settings
from pyrovi.data import AnnDataManager
from pyrovi.data.fields import MuDataField, TotalField
from pyrovi.data.fields.base import AnnDataField
from pyrovi.data.fields.layer import carried_total
from pyrovi.data.write_back import blank_copy, is_writable, write_field
from pyrovi.errors import ModelError
from pyrovi.model.draws import example_on_device, latent_sites, warn_if_untrained
from pyrovi.model.truth import store_truth
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role, Site
from pyrovi.posterior.engine import stream_query
from pyrovi.posterior.globals import draw_globals
from pyrovi.posterior.labels import label
from pyrovi.posterior.observed import refuse_factors
from pyrovi.posterior.own_data import refuse_own_data
from pyrovi.posterior.prior_draws import check_prior_draws
from pyrovi.posterior.replication import Replication
from pyrovi.posterior.stories import guide_trace, latent_values, prior_story
from pyrovi.posterior.vectorise import DrawMapper

if TYPE_CHECKING:
    from pyrovi.dataloaders.minibatch import Minibatch
    from pyrovi.model.base import BaseModelClass

_SPARSE_BELOW = 0.5
"""Fraction of values other than zero below which blocks of a sparse matrix are kept sparse."""


def simulate(
    model: BaseModelClass,
    seed: int | None = None,
    *,
    from_: Literal["prior", "posterior"] = "prior",
    given: Mapping[str, Any] | None = None,
    sites: str | Sequence[str] | None = None,
    adata: Any = None,
    batch_size: int | None = None,
) -> Any:
    """Make up data: one joint draw of the prior or posterior predictive distribution.

    The result has the form of the model's data (names, covariates, sparse where they are), with the
    observed sites drawn, and the truth they were drawn with. It can be looked at with scanpy, and
    fitted: ``fresh_copy(model, simulated).train()`` recovers the truth, or does not
    (:func:`pyrovi.criticism.recovery`).

    Parameters
    ----------
    seed
        Root seed; ``None`` for ``settings.seed``. Another seed is another data set.
    from_
        ``"prior"`` draws all latent sites from their priors (parameters that are not sites, such as
        the weights of a decoder, are what they are now); ``"posterior"`` from the fitted posterior.
    given
        Global site -> value to simulate with; what depends on it is drawn from the prior given it.
    sites
        Latent and deterministic sites whose truth is kept; ``None`` for all. Name those of interest
        if deterministic sites have a value per observation and variable, and the data are large.
    adata
        Data whose names and covariates to use; ``None`` for the model's own.
    batch_size
        Largest number of observations at a time. Draws of global sites do not depend on it.

    Returns
    -------
    AnnData or MuData
        New data; nothing is written into, or shared with, the model's. Matrices that the model does
        not read are left out. The truth is in ``uns``, ``obsm``, ``varm`` and ``layers``: read it
        with :func:`truth_of`.

    Raises
    ------
    ModelError
        If an observed site is no registered field (its values have no place in the data), has a
        distribution that reads the observed data (a lag, another site's outcome) beyond their
        totals, is drawn infinite or not a number, or a given value does not fit. If the prior is
        improper or has ``pyro.factor`` terms, from which nothing can be drawn.

    Notes
    -----
    Totals that the model takes as known (:func:`pyrovi.fields.total`) of counts that are now
    simulated are kept in a column of ``obs`` of the result (``pyrovi_total_X``, or
    ``pyrovi_total_layers_<layer>``), where the field finds them: a fit of these data reads the
    covariate that they were simulated with, not their own sums. What a story computes from the
    counts itself cannot be kept: register it as a field.
    """
    if from_ not in ("prior", "posterior"):
        raise ModelError(f"from_ must be 'prior' or 'posterior', got {from_!r}.")
    if given and from_ == "posterior":
        raise ModelError(
            "given= fixes sites of the prior; from_='posterior' draws them together from the "
            "fitted posterior. Leave one of the two out."
        )
    if from_ == "posterior":
        warn_if_untrained(model)
    else:
        check_prior_draws(model.sites, given or ())
        refuse_factors(model.sites)
    manager, positions, loader = model.loader(adata)
    drawn = _sites(model, from_, sites)
    observed = [name for name, site in drawn.items() if site.role is Role.OBSERVED]
    example = example_on_device(model, manager)
    if given:
        globals_ = _globals_given(model, example, given, seed)
    else:
        globals_ = draw_globals(model.module, example, 1, seed, prior=from_ == "prior")
    replication = Replication(model.module, list(drawn), prior=from_ == "prior")
    parts: dict[str, list[Any]] = {name: [] for name in drawn}
    fields: dict[str, AnnDataField] = {}
    batches = stream_query(
        model.module,
        loader,
        replication,
        globals_,
        drawn,
        num_draws=1,
        batch_size=batch_size or settings.batch_size,
        seed=seed,
    )
    for minibatch, draws in batches:
        if not fields:
            fields = {
                name: _field_of(name, replication.observed[name], minibatch.tensors, manager)
                for name in observed
            }
            _check_own_data(model, minibatch, globals_, fields, draws, from_)
        for name, site in drawn.items():
            values = draws[name][0].cpu().numpy()
            if name in fields:
                _check_finite(name, values, from_)
            if site.is_local or not parts[name]:
                parts[name].append(_compressed(values) if name in fields else values)
    arrays = {name: _joined(values, drawn[name]) for name, values in parts.items()}
    made = blank_copy(manager.adata, manager.fields, list(fields.values()))
    for name, field in fields.items():
        state = manager.registry["field_registries"][field.registry_key]["state_registry"]
        write_field(made, field, state, arrays.pop(name), manager.adata)
    _carry_totals(made, manager, list(fields.values()))
    truth = label(arrays, {name: drawn[name] for name in arrays}, model.coords(manager, positions))
    about = {"source": from_, "seed": settings.seed if seed is None else int(seed)}
    store_truth(made, truth, {**about, "model": type(model).__name__})
    return made


def _check_own_data(
    model: BaseModelClass,
    minibatch: Minibatch,
    globals_: Mapping[str, Tensor],
    fields: Mapping[str, AnnDataField],
    draws: Mapping[str, Tensor],
    from_: str,
) -> None:
    known = model.sites.names(Role.GLOBAL)
    values = {name: globals_[name][0] for name in known}
    if from_ == "posterior":
        chosen = {name: value[0] for name, value in globals_.items()}
        with torch.no_grad(), evaluation_mode(model.module), stream("own data"):
            values |= latent_values(guide_trace(model.module, minibatch, chosen))
    keys = {name: field.registry_key for name, field in fields.items()}
    drawn = {name: draws[name][0] for name in fields}
    refuse_own_data(model.module, minibatch, values, keys, drawn)


def _sites(
    model: BaseModelClass, from_: str, wanted: str | Sequence[str] | None
) -> dict[str, Site]:
    ledger = model.sites
    if not ledger.names(Role.OBSERVED):
        raise ModelError("The model observes nothing: there are no data to simulate.")
    latent = (
        latent_sites(model)
        if from_ == "posterior"
        else ledger.names(Role.GLOBAL, Role.LOCAL, Role.ENUMERATED)
    )
    kept = [*latent, *ledger.names(Role.DETERMINISTIC)]
    if wanted is not None:
        kept = ledger.resolve(wanted)
    names = [*kept, *ledger.names(Role.OBSERVED)]
    return {name: ledger[name] for name in ledger if name in names}


def _globals_given(
    model: BaseModelClass, example: Any, given: Mapping[str, Any], seed: int | None
) -> dict[str, Tensor]:
    names = model.sites.names(Role.GLOBAL)
    values = {}
    for name, value in given.items():
        if name not in names:
            raise ModelError(
                f"given= names {name!r}, which is no global latent site; there are: "
                f"{', '.join(names) or 'none'}."
            )
        tensor = torch.as_tensor(np.asarray(value), dtype=torch.get_default_dtype())
        shape = tuple(int(n) for n in model.sites[name].shape)
        if tensor.numel() != int(np.prod(shape)):
            raise ModelError(
                f"given[{name!r}] has shape {tuple(tensor.shape)}; expected {shape}, that of the "
                "site."
            )
        tensor = tensor.reshape(shape).to(model.device)
        support = model.sites[name].support
        if support is not None and not bool(support.check(tensor).all()):
            raise ModelError(
                f"given[{name!r}] lies outside the support of the site, {support}; pass a value "
                "inside."
            )
        values[name] = tensor[None]
    story = prior_story(model.module, example, names)
    with evaluation_mode(model.module), stream("draws", "prior", 0, seed=seed):
        return DrawMapper(model.module)(story, values, 1)


def _field_of(
    name: str, value: Tensor, tensors: Mapping[str, Tensor], manager: AnnDataManager
) -> AnnDataField:
    """The field whose tensor an observed site observes."""
    same = [key for key, tensor in tensors.items() if _is_same(value, tensor)]
    shared = [key for key in same if _shares_storage(value, tensors[key])]
    key = name if name in same else next(iter(shared or same), None)
    if key is None:
        raise ModelError(
            f"The observed site {name!r} is not one of the registered fields "
            f"({', '.join(tensors) or 'none'}): its data are computed in the story, or belong to "
            "it, so simulated values have no place in the data. Register the observed data as a "
            "field, and observe its tensor itself."
        )
    field = next(field for field in manager.fields if field.registry_key == key)
    if not is_writable(field):
        raise ModelError(
            f"The observed site {name!r} is the field {key!r}, which is computed from "
            f"{field.where}: simulated values have no place in the data. Observe a field that "
            "holds the values themselves, e.g. a column of obs."
        )
    return field


def _is_same(value: Tensor, tensor: Tensor) -> bool:
    one, two = value.squeeze(), tensor.squeeze()
    return one.shape == two.shape and bool((one.double() == two.double()).all())


def _shares_storage(value: Tensor, tensor: Tensor) -> bool:
    return value.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def _check_finite(name: str, values: np.ndarray, from_: str) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise ModelError(
            f"{int(wrong.sum())} drawn values of {name!r} are not finite (e.g. {values[wrong][0]})."
            f" Under the {from_} the model makes data that cannot be: look at sample_prior() of "
            "the sites it depends on, and use narrower priors or a bounded link."
        )


def _compressed(values: np.ndarray) -> Any:
    """A block of a matrix, sparse if that is smaller."""
    if values.ndim == 2 and np.count_nonzero(values) < _SPARSE_BELOW * values.size:
        return sparse.csr_array(values)
    return values


def _joined(parts: list[Any], site: Site) -> Any:
    if not site.is_local:
        return parts[0]
    if any(map(sparse.issparse, parts)):
        return sparse.vstack([sparse.csr_array(part) for part in parts], format="csr")
    axis = site.obs_axis
    assert axis is not None
    return np.concatenate(parts, axis=axis)


def _carry_totals(made: Any, manager: AnnDataManager, written: list[AnnDataField]) -> None:
    """Keep the totals of values that are simulated now: they were the covariate."""
    places = {(f.mod_key, f.attr_name, str(f.attr_key)) for f in written}
    for field in manager.fields:
        plain = field.field if isinstance(field, MuDataField) else field
        place = (field.mod_key, field.attr_name, str(field.attr_key))
        if isinstance(plain, TotalField) and place in places:
            part = made if field.mod_key is None else made.mod[field.mod_key]
            totals = np.asarray(manager.get_from_registry(field.registry_key), dtype=np.float64)
            part.obs[carried_total(plain.layer)] = totals.ravel()
