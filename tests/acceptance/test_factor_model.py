"""A negative-binomial factor model of real counts, from the story to the report."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from scipy import stats

import pyrovi as pv

pytestmark = [pytest.mark.acceptance, pytest.mark.filterwarnings("ignore")]

GIB = 2**30


def nb_factors(X: Any, library: Any, *, n_vars: int, n_factors: int = 8) -> None:
    """X_n ~ NB(mean l_n softmax(b + z_n W), inverse dispersion theta)."""
    b = pyro.sample("b", dist.Normal(torch.full([n_vars], -7.0), 3.0).to_event(1))
    theta = pyro.sample("theta", dist.LogNormal(torch.zeros(n_vars), 1.5).to_event(1))
    W = pyro.sample("W", dist.Normal(torch.zeros(n_factors, n_vars), 0.5).to_event(2))
    with pv.obs_plate():
        z = pyro.sample("z", dist.Normal(torch.zeros(n_factors), 1.0).to_event(1))
        mu = pyro.deterministic("mu", library * torch.softmax(b + z @ W, -1), event_dim=1)
        likelihood = pv.distributions.NegativeBinomial(mu=mu, theta=theta)
        pyro.sample("X", likelihood.to_event(1), obs=X)


def poisson_factors(X: Any, library: Any, *, n_vars: int, n_factors: int = 8) -> None:
    """The same without dispersion."""
    b = pyro.sample("b", dist.Normal(torch.full([n_vars], -7.0), 3.0).to_event(1))
    W = pyro.sample("W", dist.Normal(torch.zeros(n_factors, n_vars), 0.5).to_event(2))
    with pv.obs_plate():
        z = pyro.sample("z", dist.Normal(torch.zeros(n_factors), 1.0).to_event(1))
        mu = pyro.deterministic("mu", library * torch.softmax(b + z @ W, -1), event_dim=1)
        pyro.sample("X", dist.Poisson(mu).to_event(1), obs=X)


FIELDS = {"X": pv.fields.layer(), "library": pv.fields.total()}
DIMS = {"b": ["var"], "theta": ["var"], "W": ["factor", "var"], "z": ["factor"]}


def counts(folder: Path, n_obs: int, n_vars: int) -> anndata.AnnData:
    """Real counts: the cells in their order, the most variable genes."""
    file = next(folder.glob("citeseq_pbmc10k*"), None)
    if file is None:
        pytest.skip("needs citeseq_pbmc10k among the real data")
    adata = anndata.read_h5ad(file)[:n_obs].copy()
    X = sp.csr_matrix(adata.X)
    variance = X.multiply(X).mean(0).A1 - np.square(X.mean(0).A1)
    adata = adata[:, np.sort(np.argsort(-variance)[:n_vars])].copy()
    return adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Largest resident memory inside, above that at the beginning, in GiB."""
    found = {"peak": 0.0}
    stop = threading.Event()
    before = _resident()

    def watch() -> None:
        while not stop.is_set():
            found["peak"] = max(found["peak"], (_resident() - before) / GIB)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def make(story: Any, adata: anndata.AnnData) -> Any:
    return pv.from_pyro(story, adata, FIELDS, guide="amortized", site_dims=_dims(story))


def _dims(story: Any) -> dict[str, list[str]]:
    text = inspect.getsource(story)
    return {site: dims for site, dims in DIMS.items() if f'sample("{site}"' in text}


def test_the_workflow(pyrovi_data: Path, tmp_path: Path, table: list[Any]) -> None:
    assert len(inspect.getsource(nb_factors).splitlines()) <= 30
    adata = counts(pyrovi_data, 1500, 500)
    models = {
        name: make(s, adata) for name, s in (("nb", nb_factors), ("poisson", poisson_factors))
    }
    for model in models.values():
        model.train(train_size=0.7, enable_progress_bar=False)
    nb = models["nb"]
    diagnosis = pv.criticism.diagnose(nb)
    print("\n", diagnosis)
    assert not diagnosis.table.empty
    results = {name: pv.criticism.held_out(model, num_samples=50) for name, model in models.items()}
    comparison = pv.criticism.compare(results, by="held_out")
    print(comparison.to_string())
    assert comparison.index[0] == "nb"
    assert max(result.n_bad for result in results.values()) <= 3
    # a few cells lose thousands of nats without dispersion: their sum has a large error, signs none
    worse = comparison.loc["poisson"]
    assert worse["elpd_diff"] + 2 * worse["dse"] < 0
    gain = results["nb"].pointwise["elpd"] - results["poisson"].pointwise["elpd"]
    assert stats.binomtest(int((gain > 0).sum()), len(gain), alternative="greater").pvalue < 1e-6
    checks = pv.criticism.posterior_predictive_checks(nb, num_samples=50)
    print(checks.summary())
    assert checks.coverage("zero_fraction") > 0.6
    report = tmp_path / "report.html"
    pv.criticism.report(nb, report)
    assert report.stat().st_size > 50_000
    assert json.loads(report.with_suffix(".json").read_text())
    genes = nb.summary("theta", coords={"var": list(adata.var_names[:3])}, num_samples=50)
    assert all(any(gene in str(label) for label in genes.index) for gene in adata.var_names[:3])
    table.append({"case": "nb factors (1,500 x 500)", "fit": "amortized",
                  "elbo": round(nb.get_elbo(), 2)})  # fmt: skip


def test_memory_of_streamed_queries(pyrovi_data: Path, table: list[Any]) -> None:
    adata = counts(pyrovi_data, 5000, 2000)
    model = make(nb_factors, adata)
    model.train(max_epochs=1, enable_progress_bar=False)
    model.get_elbo(indices=np.arange(200), num_samples=2)
    queries = {
        "posterior predictive mean": lambda: model.posterior_predictive(
            num_samples=200, reduce="mean"
        ),
        "mu mean and sd": lambda: model.sample_posterior(
            "mu", num_samples=200, reduce=["mean", "sd"]
        ),
        "predictive checks": lambda: pv.criticism.posterior_predictive_checks(
            model, num_samples=200
        ),
        "marginal likelihood": lambda: model.marginal_log_likelihood(num_samples=2, num_inner=200),
    }
    for name, query in queries.items():
        with peak_memory() as found:
            start = time.perf_counter()
            query()
            seconds = time.perf_counter() - start
        row = {"seconds": round(seconds, 1), "peak GiB": round(found["peak"], 2)}
        table.append({"case": f"memory: {name}", "fit": "5,000 x 2,000 x 200 draws", **row})
        print(table[-1], flush=True)
        assert found["peak"] < 1.0
