"""The demonstration: fit SCVI to real counts, query it, check it, and write a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovi._lazy import lazy_attributes

if TYPE_CHECKING:
    from pyrovi.demo.counts import recover_counts
    from pyrovi.demo.dataset import bundled_pbmc
    from pyrovi.demo.job import DemoResult, run_demo
    from pyrovi.demo.latent_space import label_agreement, plot_embedding, umap_embedding

__all__ = [
    "DemoResult",
    "bundled_pbmc",
    "label_agreement",
    "plot_embedding",
    "recover_counts",
    "run_demo",
    "umap_embedding",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "DemoResult": "pyrovi.demo.job",
        "bundled_pbmc": "pyrovi.demo.dataset",
        "label_agreement": "pyrovi.demo.latent_space",
        "plot_embedding": "pyrovi.demo.latent_space",
        "recover_counts": "pyrovi.demo.counts",
        "run_demo": "pyrovi.demo.job",
        "umap_embedding": "pyrovi.demo.latent_space",
    },
)
