"""Models of a user's own Pyro function: :func:`from_pyro`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from pyrovi._rng import stream
from pyrovi._settings import settings
from pyrovi.data import AnnDataManager
from pyrovi.data.fields.mudata import is_mudata
from pyrovi.data.specs import FieldSpec, guess_spec
from pyrovi.data.tabular import as_annotated, is_plain
from pyrovi.errors import DataError, ModelError
from pyrovi.model.base import BaseModelClass
from pyrovi.model.methods import is_fitted_by_svi
from pyrovi.model.new_observations import predict_new
from pyrovi.model.possible import check_possible
from pyrovi.model.start import can_start_near, start_near_posterior
from pyrovi.model.training import note_options
from pyrovi.model.training_data import training_batch_size
from pyrovi.module.autoguides import copy_pair
from pyrovi.module.base import PyroBaseModule, local_params
from pyrovi.module.guides import StoryGuide
from pyrovi.module.ledger import Role
from pyrovi.module.story import StoryModule, made_story, story_name, tensor_names

NO_WARMUP = {"n_epochs_kl_warmup": 0}
"""Without the KL terms, latents and weights of a factor model run away from their priors together,
and far from there counts underflow."""

_SPLITS_OR_REPEATS = {
    "n_restarts", "train_size", "validation_size", "datasplitter_kwargs", "ckpt_path", "start",
}  # fmt: skip
"""Options of ``train`` with which it starts from the observations of its split, fit by fit."""

FEW = 10_000
"""Up to so many observations are one minibatch where nothing is amortised."""

MANY = 100
"""From so many observations on some are held out by default where something is amortised."""


def from_pyro(
    story: Callable[..., Any] | PyroBaseModule,
    data: Any,
    fields: Mapping[str, FieldSpec] | None = None,
    guide: Any = None,
    site_dims: Mapping[str, Sequence[str]] | None = None,
) -> PyroModel:
    """Make a model of a Pyro function and data.

    Parameters
    ----------
    story
        The generative model: a function of tensors (or a module whose ``forward`` is one). Its
        arguments are named after ``fields``; keyword-only arguments named like summary statistics
        (``n_obs``, ``n_vars``, ``n_batch``, ...) are filled in, others keep their defaults.
        What belongs to single observations stands inside ``with pv.obs_plate():``. A
        :class:`PyroBaseModule` brings its own guide. Of a class of modules (or a
        ``functools.partial`` of one) each fit makes an object of its own, which restarts need.
    data
        AnnData, MuData, a DataFrame (rows are observations), a dict of arrays (first axes are
        observations), or ``{}`` for a story that closes over its data.
    fields
        Argument of the story -> piece of the data (see :mod:`pyrovi.fields`). ``None`` looks the
        arguments up by name: columns of the DataFrame, keys of the dict, ``X``, columns of ``obs``,
        layers and ``obsm``. More fields than arguments are allowed, e.g. for an encoder.
    guide
        ``"normal"`` (the default), ``"lowrank"``, ``"mvn"``, ``"flow"``, ``"laplace"``,
        ``"delta"``, ``"amortized"``, a class or object of ``pyro.infer.autoguide``, or a function:
        of the model, that returns a guide, or the guide itself, with arguments like the story's.
    site_dims
        Site -> names of the dimensions of its value that are not plates. ``"var"``, ``"obs"`` and
        the names of fields take the data's own names as coordinates.

    Returns
    -------
    PyroModel
        A model with everything that pyrovi offers: ``train``, queries, ``to_arviz``, ``save``, ...

    Raises
    ------
    DataError, MissingKeyError
        If a field is not in the data, or cannot be used.
    ModelError
        If story, fields and guide do not fit together.

    Examples
    --------
    >>> import pandas as pd, pyro, pyro.distributions as dist, pyrovi as pv
    >>> def line(x, y):
    ...     a = pyro.sample("a", dist.Normal(0.0, 10.0))
    ...     b = pyro.sample("b", dist.Normal(0.0, 10.0))
    ...     with pv.obs_plate():
    ...         pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)
    >>> frame = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [1.0, 3.1, 4.9]})
    >>> model = pv.from_pyro(line, frame)
    >>> list(model.sites)
    ['a', 'b', 'y']
    """
    _check_story(story)
    annotated = as_annotated(data)
    if fields is None:
        fields = _guess_fields(story, data, annotated)
    specs = _check_fields(fields)
    PyroModel.setup_anndata(annotated, fields={k: s.to_json() for k, s in specs.items()})
    return PyroModel(annotated, story, guide, dict(site_dims or {}))


class PyroModel(BaseModelClass):
    """A model of a user's own Pyro function; made by :func:`from_pyro`.

    Parameters
    ----------
    adata
        Data that were set up, or a registry.
    story, guide, site_dims
        As in :func:`from_pyro`.
    """

    def __init__(
        self,
        adata: Any,
        story: Callable[..., Any],
        guide: Any = None,
        site_dims: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(adata)
        story = self._made(story)
        if isinstance(story, PyroBaseModule):
            if guide is not None:
                raise ModelError(
                    f"{type(story).__name__} is a pair with a guide of its own. Leave guide= out, "
                    "or pass its `model` alone as the story."
                )
            self.module = copy_pair(story)  # the caller's stays as it is, for further models
            return
        self.module = StoryModule(
            story,
            "normal" if guide is None else guide,
            list(self.registry["field_registries"]),
            self._constants(),
            site_dims,
        )

    @staticmethod
    def _made(story: Any) -> Any:
        with local_params(), stream("init"):
            return made_story(story)

    def _constants(self) -> dict[str, int]:
        stats = dict(self.summary_stats)
        for entry in self.registry["field_registries"].values():
            if entry["data_registry"].get("attr_name") in ("X", "layers"):
                stats.setdefault("n_vars", len(entry["state_registry"]["column_names"]))
        return stats

    @classmethod
    def setup_anndata(cls, adata: Any, fields: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Register the fields of a story.

        Parameters
        ----------
        adata
            AnnData, MuData, DataFrame or dict of arrays.
        fields
            Argument of the story -> field specification, as an object or as its JSON form.
        """
        annotated = as_annotated(adata)
        specs = {
            name: (spec if isinstance(spec, FieldSpec) else FieldSpec.from_json(spec)).resolve(
                annotated
            )
            for name, spec in fields.items()
        }
        made = [spec.field(name, annotated) for name, spec in specs.items()]
        cls.register(annotated, made, {"fields": {k: s.to_json() for k, s in specs.items()}})

    def train(
        self, max_epochs: int | None = None, *, method: str | None = None, **options: Any
    ) -> None:
        """Fit the model; see :meth:`BaseModelClass.train` for all options.

        Where every parameter is a location or a scale of the guide (``"normal"``, ``"mvn"``, ...),
        all observations are trained on, at once if there are few, to convergence: with scaled steps
        whose rate falls, and averaging (see :func:`~pyrovi.train.convergence_defaults`). With
        networks (``"amortized"``), a tenth of the observations is held out, and training stops when
        their ELBO has stopped improving. Options that are given replace these defaults; giving
        ``lr`` or ``plan_kwargs`` replaces those of the optimiser. There is no KL warm-up unless one
        is asked for.

        Parameters
        ----------
        max_epochs
            Epochs; ``None``: as many as the defaults say.
        method
            ``"svi"``, ``"nuts"``, ``"pathfinder"``, ``"laplace"`` or ``"map"``; ``None``: what the
            guide asks for (``guide="laplace"`` does), else ``"svi"``.
        options
            Further options of the method.
        """
        chosen = method or getattr(self.module.guide, "method", None) or "svi"
        given = options if max_epochs is None else {"max_epochs": max_epochs, **options}
        if chosen != "svi":
            super().train(method=chosen, **given)
            return
        training_batch_size(options.get("batch_size"))  # the defaults below count with it
        before = self._training
        plan = dict(options.get("plan_kwargs") or {})
        if plan and not any("kl" in name for name in plan):
            options = {**options, "plan_kwargs": NO_WARMUP | plan}
        defaults = self._training_defaults(max_epochs, options, *self._start(options))
        super().train(**defaults | options)
        note_options(self, given, before)

    def _start(self, options: Mapping[str, Any]) -> tuple[bool, float | None]:
        """Start the guide near the posterior, unless training has to find out what to start on.

        Returns
        -------
        tuple
            Whether it can start there, and how rough gradients are there if it has been put there.
        """
        near = not is_fitted_by_svi(self) and can_start_near(self)
        if not near or _SPLITS_OR_REPEATS & options.keys():
            return near, None
        check_possible(self)
        return True, start_near_posterior(self)

    def _training_defaults(
        self,
        max_epochs: int | None,
        options: Mapping[str, Any],
        near: bool,
        roughness: float | None,
    ) -> dict[str, Any]:
        from pyrovi.train.converge import convergence_defaults, slow_and_steady

        n_obs = self.adata_manager.n_obs
        size = options.get("batch_size", "default")
        guide = self.module.guide
        amortised = isinstance(guide, StoryGuide) and guide.is_amortised
        if size == "default":
            size = None if n_obs <= FEW and not amortised else settings.batch_size
        rough = math.inf if roughness is None else roughness
        defaults = convergence_defaults(self.module, n_obs, size, near=near, roughness=rough)
        if not defaults:
            defaults = slow_and_steady(self.module, n_obs, size, near=near)
        if near and roughness is None:
            defaults["start"] = "pathfinder"
        if not amortised:
            defaults["batch_size"] = size
        elif n_obs >= MANY:
            defaults["early_stopping"] = "train_size" not in options
            defaults["train_size"] = None
        if max_epochs is not None:
            defaults["max_epochs"] = max_epochs
        if "lr" in options or "plan_kwargs" in options:
            defaults["plan_kwargs"] = NO_WARMUP
        if options.get("datasplitter_kwargs"):
            defaults.pop("train_size", None)
        return defaults

    def posterior_predictive(
        self, sites: Any = None, *, adata: Any = None, new_levels: bool = False, **options: Any
    ) -> Any:
        """As :meth:`BaseModelClass.posterior_predictive`.

        New data of a DataFrame or dict of arrays need not have what the story observes. Then they
        are new observations, whatever their names: local latents are drawn from their prior given
        the posterior draws of the globals.

        Parameters
        ----------
        sites, adata, options
            As there.
        new_levels
            Whether columns of categories may hold levels that the model has not seen. What has a
            value per level (in a plate of their number, a keyword-only argument such as
            ``n_county``) is drawn for new ones from its prior given the other latents. The data are
            new observations then, too; outcomes in them are not looked at.
        """
        if new_levels and adata is None:
            raise ModelError("new_levels=True is for new data; pass them, adata=.")
        new = new_levels
        if is_plain(adata):
            adata = as_annotated(adata)
            new = self._fill_outcomes(adata) or new
        if new:
            return predict_new(self, sites, adata=adata, new_levels=new_levels, **options)
        return super().posterior_predictive(sites, adata=adata, **options)

    def _fill_outcomes(self, adata: Any) -> bool:
        """Fill in what the story observes and the data lack; whether latents are told by that."""
        entries = self.registry["field_registries"]
        lacking, found = [], False
        for name in self.sites.names(Role.OBSERVED):
            entry = entries.get(name)
            if entry is None or entry["data_registry"].get("attr_name") not in ("obs", "obsm"):
                continue
            key = entry["data_registry"]["attr_key"]
            has = key in adata.obs or key in adata.obsm
            found |= has
            lacking += [] if has else [entry]
        latents = self.sites.names(Role.LOCAL, Role.ENUMERATED)
        informed = any(self.sites[name].is_local for name in latents)
        if informed and found:  # some outcomes tell about latents: all are needed
            return False
        for entry in lacking:
            key, shape = entry["data_registry"]["attr_key"], entry["tensor"]["shape"]
            if "categorical_mapping" in entry["state_registry"]:
                adata.obs[key] = entry["state_registry"]["categorical_mapping"][0]
            elif entry["data_registry"]["attr_name"] == "obs":
                adata.obs[key] = np.ones(adata.n_obs)
            else:
                adata.obsm[key] = np.ones((adata.n_obs, *shape))
        return informed and bool(lacking)

    def manager_of(self, adata: Any) -> AnnDataManager:
        """Manager of the data of a query; a DataFrame or dict of arrays will do as well.

        Raises
        ------
        RegistryError
            If the data do not match the registry.
        """
        return super().manager_of(as_annotated(adata) if is_plain(adata) else adata)


def _check_story(story: Any) -> None:
    if inspect.isclass(story):
        _check_maker(story)
        return
    if not callable(story) and not isinstance(story, PyroBaseModule):
        raise ModelError(
            f"The story is {story!r} ({type(story).__name__}). Expected a function of tensors, "
            "`def story(X): ...`, itself and not its result, or a torch module."
        )


def _check_maker(story: type) -> None:
    parameters = list(inspect.signature(story.__init__).parameters.values())[1:]  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in named]
    if not issubclass(story, nn.Module):
        raise ModelError(
            f"The story is the class {story.__name__}. Expected a function of tensors, or a class "
            "of torch modules whose forward is one."
        )
    if needed:
        raise ModelError(
            f"The story is the class {story.__name__}, which needs {', '.join(needed)}. Pass them: "
            f"functools.partial({story.__name__}, {needed[0]}=...), or an object, "
            f"{story.__name__}(...)."
        )


def _check_fields(fields: Mapping[str, Any]) -> dict[str, FieldSpec]:
    if not isinstance(fields, Mapping):
        raise DataError(
            f"fields= is a {type(fields).__name__}. Expected a dict of arguments of the story and "
            "the pieces of the data that they are, e.g. {'X': pv.fields.layer('counts')}."
        )
    for name, spec in fields.items():
        if not isinstance(spec, FieldSpec):
            raise DataError(
                f"fields[{name!r}] is {spec!r} ({type(spec).__name__}). Expected a piece of the "
                "data such as pv.fields.layer('counts'), pv.fields.obs('batch') or "
                "pv.fields.column('y')."
            )
    return dict(fields)


def _guess_fields(story: Any, data: Any, annotated: Any) -> dict[str, FieldSpec]:
    story = made_story(story)
    if isinstance(story, PyroBaseModule):
        raise ModelError(
            f"A {type(story).__name__} needs fields=: which piece of the data each tensor of its "
            "model and guide is, e.g. fields={'X': pv.fields.layer('counts')}."
        )
    names = tensor_names(story)
    specs: dict[str, FieldSpec] = {}
    if is_mudata(annotated):
        raise DataError(
            "A MuData needs fields=, with the modality of each: "
            "fields={'X': pv.fields.layer('counts', mod='rna')}."
        )
    for name in names:
        if is_plain(data):
            found = name in annotated.obs or name in annotated.obsm
            spec = FieldSpec("array", name) if found else None
        else:
            spec = guess_spec(name, annotated)
        if spec is None:
            has = [*annotated.obs, *annotated.layers, *annotated.obsm]
            raise ModelError(
                f"{story_name(story)} asks for {name!r}, which the data have nothing of (found: "
                f"{', '.join(has) or 'nothing'}). Say where it is: fields={{{name!r}: "
                "pv.fields.column('...')}; or, if it is a constant, make it keyword-only (after a "
                "`*`) with a default."
            )
        specs[name] = spec
    return specs
