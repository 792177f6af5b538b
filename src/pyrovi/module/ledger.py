"""The site ledger: what each Pyro site of a module is (see :mod:`pyrovi.module.prototype`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch.distributions import constraints

from pyrovi.errors import ModelError
from pyrovi.module.plates import OBS_PLATE

if TYPE_CHECKING:
    import pandas as pd


class Role(StrEnum):
    """What a site is to inference."""

    GLOBAL = "global"
    LOCAL = "local"
    ENUMERATED = "enumerated"
    DETERMINISTIC = "deterministic"
    OBSERVED = "observed"
    FACTOR = "factor"
    """A ``pyro.factor`` term: it adds to the log density and has no value."""


@dataclass(frozen=True)
class Site:
    """One named statement of a model.

    Parameters
    ----------
    name
        Name of the site.
    role
        Its role.
    plates
        Names of the plates it stands in, outermost first.
    shape
        Shape of one value, with ``"obs"`` where the observations are.
    dims
        Names of the dimensions of one value, in the order of ``shape``; ``None`` marks a broadcast
        dimension of size one that results leave out.
    event_dim
        Number of rightmost dimensions that make up one event.
    support
        Constraint of the distribution; ``None`` for deterministic sites.
    support_varies
        Whether the support depends on other latent sites or on parameters.
    is_improper
        Whether it is latent with a flat density, from which nothing can be drawn
        (``dist.ImproperUniform``).
    is_categorical
        Whether its values are codes of categories, of which no mean makes sense: it is drawn from a
        Categorical, or names a ``category_dim``.
    """

    name: str
    role: Role
    plates: tuple[str, ...]
    shape: tuple[int | str, ...]
    dims: tuple[str | None, ...]
    event_dim: int
    support: Any = None
    support_varies: bool = False
    is_improper: bool = False
    is_categorical: bool = False

    @property
    def is_discrete(self) -> bool:
        """Whether its values are countable; ``False`` for deterministic sites."""
        return self.support is not None and bool(self.support.is_discrete)

    @property
    def is_local(self) -> bool:
        """Whether there is one value per observation."""
        return OBS_PLATE in self.dims

    @property
    def is_latent(self) -> bool:
        """Whether inference has to find it."""
        return self.role in (Role.GLOBAL, Role.LOCAL, Role.ENUMERATED)

    @property
    def n_shown(self) -> int:
        """Number of dimensions worth showing: the value of a factor is an empty event."""
        return len(self.dims) - (self.role is Role.FACTOR) * self.event_dim

    @property
    def obs_axis(self) -> int | None:
        """Axis of the observations, counted from the right (negative); ``None`` if none."""
        return self.dims.index(OBS_PLATE) - len(self.dims) if self.is_local else None


class SiteLedger(Mapping[str, Site]):
    """All sites of a model, by name, in the order of the story."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = {site.name: site for site in sites}

    def __getitem__(self, name: str) -> Site:
        try:
            return self._sites[name]
        except KeyError:
            raise ModelError(
                f"There is no site {name!r}; the model's sites are: {', '.join(self._sites)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def names(self, *roles: Role) -> list[str]:
        """Names of the sites that have one of the roles."""
        return [name for name, site in self._sites.items() if site.role in roles]

    def resolve(self, sites: str | Sequence[str] | None, *default_roles: Role) -> list[str]:
        """Names asked for, or all of the default roles; unknown names raise :class:`ModelError`."""
        if sites is None:
            return self.names(*default_roles)
        if not isinstance(sites, Iterable):
            raise ModelError(
                f"sites is a {type(sites).__name__}. Expected names of sites (data are given by "
                f"name: adata=...); the model's sites are: {', '.join(self._sites)}"
            )
        return [self[name].name for name in ([sites] if isinstance(sites, str) else sites)]

    def named_after(self, fields: Mapping[str, str]) -> SiteLedger:
        """Ledger in which observed fields name dimensions that the module has not named.

        Parameters
        ----------
        fields
            Name of an observed matrix -> name of its columns. Deterministic sites of the matrix's
            shape (its mean, its rate) take the same.
        """
        by_shape: dict[tuple[int | str, ...], tuple[str | None, ...]] = {}
        for name, columns in fields.items():
            site = self._sites.get(name)
            if site is None or site.role is not Role.OBSERVED or _unnamed(site) != [1]:
                continue
            if len(site.dims) == 2 and site.is_local:
                by_shape.setdefault(site.shape, (OBS_PLATE, columns))
        matching = (Role.OBSERVED, Role.DETERMINISTIC)
        return SiteLedger(
            [
                replace(site, dims=by_shape[site.shape])
                if site.role in matching and site.shape in by_shape and _unnamed(site) == [1]
                else site
                for site in self._sites.values()
            ]
        )

    @property
    def improper(self) -> list[str]:
        """Names of the sites from whose prior nothing can be drawn."""
        return [name for name, site in self._sites.items() if site.is_improper]

    @property
    def max_plate_nesting(self) -> int:
        """Number of batch dimensions that plates may take."""
        return max((len(s.dims) - s.event_dim for s in self._sites.values()), default=0)

    def rows(self) -> list[dict[str, str]]:
        """What the table shows of each site."""
        return [
            {
                "site": s.name,
                "role": str(s.role),
                "plates": ", ".join(s.plates),
                "dims": "(" + ", ".join(d or "1" for d in s.dims[: s.n_shown]) + ")",
                "shape": "(" + ", ".join(map(str, s.shape[: s.n_shown])) + ")",
                "support": _support_name(s),
            }
            for s in self._sites.values()
        ]

    def to_frame(self) -> pd.DataFrame:
        """The table as a DataFrame, indexed by site."""
        import pandas as pd

        columns = ["site", "role", "plates", "dims", "shape", "support"]
        return pd.DataFrame(self.rows(), columns=columns).set_index("site")

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html())

    def __repr__(self) -> str:
        table = self.rows()
        rows = [tuple(table[0])] if table else []
        rows += [tuple(row.values()) for row in table]
        if not rows:
            return "no sites"
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)


def _unnamed(site: Site) -> list[int]:
    """Axes whose names were made up."""
    made_up = f"{site.name}_dim_"
    return [
        axis for axis, dim in enumerate(site.dims) if dim is not None and dim.startswith(made_up)
    ]


_SUPPORTS = {
    "Real": "real",
    "Boolean": "0 or 1",
    "Simplex": "simplex",
    "GreaterThanEq(lower_bound=0.0)": ">= 0",
    "IntegerGreaterThan(lower_bound=0)": "0, 1, 2, ...",
    "UnitInterval": "(0, 1)",
    "Interval(lower_bound=0.0, upper_bound=1.0)": "(0, 1)",
    "LowerCholesky": "lower Cholesky",
    "CorrCholesky": "correlation Cholesky",
    "PositiveDefinite": "positive definite",
    "OrderedVector": "ordered",
}


def _support_name(site: Site) -> str:
    support = site.support
    while hasattr(support, "base_constraint"):  # of an event: the shape tells its dimensions
        support = support.base_constraint
    name = _bounded(support) or ("" if support is None else str(support).removesuffix("()"))
    return _SUPPORTS.get(name, name) + (", depends on other sites" if site.support_varies else "")


def _bounded(support: Any) -> str | None:
    """Bounds of an interval, those that are not one number by name: a table shows no data."""
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    if isinstance(support, type(constraints.integer_interval(0, 1))):
        low, high = map(_bound, bounds, ("m", "n"))
        return f"integers from {low} to {high}"
    if isinstance(support, type(constraints.interval(0, 1))) and any(map(_is_many, bounds)):
        low, high = map(_bound, bounds, ("low", "high"))
        return f"({low}, {high})"
    if isinstance(support, type(constraints.greater_than(0))):
        return f"> {_bound(bounds[0], 'low')}"
    return None


def _bound(bound: Any, name: str) -> str:
    return name if _is_many(bound) else f"{float(bound):g}"


def _is_many(bound: Any) -> bool:
    return isinstance(bound, torch.Tensor) and bound.dim() > 0
