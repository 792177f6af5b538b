"""What an export to ArviZ asks for: observations, draws and chains, the same for every group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._rng import derive_seed
from pyrovi.errors import ModelError
from pyrovi.model.chains import in_chain, num_chains
from pyrovi.model.draws import GUIDE_DRAWS, latent_sites, resolve_num_samples
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.arviz import with_chain

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass

MAX_LOCAL_ELEMENTS = 10_000_000
"""Most numbers (chains x draws x size) of a site with one value per observation that an export
includes without being asked for it by name; 40 MB in single precision."""


@dataclass(frozen=True)
class Request:
    """The draws of an export.

    Attributes
    ----------
    model
        The model.
    manager
        Manager of the data.
    own_data
        Whether these are the data that the model was made with.
    positions
        Positions of the observations.
    num_samples
        Draws of each chain; ``None`` as in :meth:`sample_posterior`.
    num_inner
        Draws of the locals that marginal likelihoods integrate them out with.
    batch_size, seed
        As in :meth:`sample_posterior`.
    """

    model: BaseModelClass
    manager: AnnDataManager
    own_data: bool
    positions: np.ndarray
    num_samples: int | None
    num_inner: int
    batch_size: int | None
    seed: int | None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of a query, without its seed."""
        return {
            "num_samples": self.num_samples,
            "adata": self.manager,
            "indices": self.positions,
            "batch_size": self.batch_size,
        }

    @property
    def num_prior_samples(self) -> int:
        """Draws of the prior."""
        return self.num_samples or GUIDE_DRAWS

    def seed_of(self, chain: int) -> int | None:
        """Root seed of a chain: each has noise of its own, the same in every group."""
        return self.seed if chain == 0 else derive_seed("chain", chain, seed=self.seed)

    def by_chain(self, query: Callable[[int | None], xr.Dataset]) -> xr.Dataset:
        """A query of each chain for itself, side by side; ``query`` takes the seed."""
        import xarray as xr

        results = []
        for chain in range(num_chains(self.model)):
            with in_chain(self.model, chain):
                results.append(query(self.seed_of(chain)))
        if "draw" not in results[0].dims:
            return results[0]
        results = [one.assign_coords(draw=np.arange(one.sizes["draw"])) for one in results]
        if len(results) == 1:
            return with_chain(results[0])
        chains = xr.DataArray(np.arange(len(results)), dims="chain", name="chain")
        return xr.concat(
            results, dim=chains, data_vars="all", coords="minimal", compat="override",
            join="exact", combine_attrs="override",
        )  # fmt: skip

    def sites(self, sites: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
        """Sites of the posterior and prior groups, and those that are left out as too large.

        Raises
        ------
        ModelError
            If no site is small enough.
        """
        model = self.model
        if sites is not None:
            return model.sites.resolve(sites), []
        names = latent_sites(model)
        with in_chain(model, 0):
            draws = num_chains(model) * resolve_num_samples(model, self.num_samples)
        sizes = {name: draws * self._size(name) for name in names if model.sites[name].is_local}
        left_out = [name for name, size in sizes.items() if size > MAX_LOCAL_ELEMENTS]
        kept = [name for name in names if name not in left_out]
        if names and not kept:
            largest = max(sizes.values())
            raise ModelError(
                f"The draws of {', '.join(map(repr, left_out))} for {len(self.positions)} "
                f"observations are up to {largest:.2g} numbers each, and those of more than "
                f"{MAX_LOCAL_ELEMENTS:.0e} are exported on demand only. Ask for some observations "
                "(indices=), fewer draws (num_samples=), or name the sites to have them all."
            )
        return kept, left_out

    def _size(self, name: str) -> int:
        shape = self.model.sites[name].shape
        sizes = [len(self.positions) if n == OBS_PLATE else int(n) for n in shape]
        return int(np.prod(sizes, dtype=np.int64))
