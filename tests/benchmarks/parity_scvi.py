"""Whether pyrovi's VAE is the same function of its parameters as scvi-tools': ``parity_scvi.py``.

Models of scvi-tools are fitted for a moment on synthetic counts, and their parameters, renamed, are
put into pyrovi's models. Compared in double precision are

- the ELBO of every cell, with the latents at their posterior means, in evaluation mode;
- the loss of a training step and its gradient, with dropout, batch normalisation, a KL weight of
  one half and the same random numbers.

A largest difference above ``TOLERANCE`` (of the gradient: relative to its largest entry) is an
error.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from peers import HERE, peer_python

import pyrovi as pv
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.posterior.bounds import elbo_story
from pyrovi.posterior.stories import guide_trace, latent_values
from pyrovi.train.plan import SVITrainingPlan

TOLERANCE = 1e-5

BATCH: dict[str, Any] = {"batch_key": "batch"}
COVARIATES = BATCH | {"categorical_covariate_keys": ["site"]}
CONTINUOUS = COVARIATES | {"continuous_covariate_keys": ["age", "dose"]}
CASES: list[dict[str, Any]] = [
    # scvi-tools never anneals the KL of the library, pyrovi all of it
    {"name": name, "setup": setup, "model": model}
    | {"kl_weight": 1.0 if name == "latent-library" else 0.5}
    for name, setup, model in [
        ("zinb", {}, {}),
        ("nb", BATCH, {"gene_likelihood": "nb"}),
        ("poisson", BATCH, {"gene_likelihood": "poisson"}),
        ("normal", BATCH, {"gene_likelihood": "normal"}),
        ("gene-batch", BATCH, {"dispersion": "gene-batch"}),
        ("gene-label", BATCH | {"labels_key": "labels"}, {"dispersion": "gene-label"}),
        ("gene-cell", BATCH, {"dispersion": "gene-cell"}),
        ("logistic-normal", BATCH, {"latent_distribution": "ln"}),
        ("latent-library", BATCH, {"use_observed_lib_size": False}),
        ("size-factor", BATCH | {"size_factor_key": "size_factor"}, {}),
        ("two-layers", COVARIATES, {"n_layers": 2, "encode_covariates": True}),
        ("shallow", COVARIATES, {"n_layers": 2, "deeply_inject_covariates": False}),
        ("layer-norm", BATCH, {"use_batch_norm": "none", "use_layer_norm": "both"}),
        ("continuous", CONTINUOUS, {"encode_covariates": True}),
        ("embedding", CONTINUOUS, {"batch_representation": "embedding"}),
    ]
]

_RENAMED = [
    (r"^z_encoder\.encoder\.fc_layers\.", "encoder.layers.layers."),
    (r"^l_encoder\.encoder\.fc_layers\.", "library_encoder.layers.layers."),
    (r"^decoder\.px_decoder\.fc_layers\.", "decoder.layers.layers."),
    (r"^z_encoder\.", "encoder."),
    (r"^l_encoder\.", "library_encoder."),
    (r"layers\.Layer (\d+)\.0\.", r"layers.\1.linear."),
    (r"layers\.Layer (\d+)\.1\.", r"layers.\1.batch_norm."),
    (r"\.mean_encoder\.", ".mean_head."),
    (r"\.var_encoder\.", ".variance_head."),
    (r"\.px_scale_decoder\.0\.", ".scale_head."),
    (r"\.px_r_decoder\.", ".r_head."),
    (r"\.px_dropout_decoder\.", ".dropout_head."),
    (r"^px_r$", "log_theta"),
    (r"^_embeddings_dict\.batch\.weight$", "batch_embedding.trainable"),
]


def renamed(name: str) -> str:
    """Name in pyrovi of a parameter or buffer of scvi-tools' VAE."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def make_data(n_obs: int = 240, n_vars: int = 60) -> ad.AnnData:
    """Counts of cells with three batches, two labels and covariates of every kind."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(2.0, 2.0, n_vars) * rng.gamma(4.0, 0.25, (n_obs, 1))
    counts = rng.poisson(rate * rng.gamma(2.0, 0.5, (n_obs, n_vars))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "batch": rng.choice(["a", "b", "c"], n_obs),
            "labels": rng.choice(["x", "y"], n_obs),
            "site": rng.choice(["n", "s", "t", "w"], n_obs),
            "age": rng.normal(size=n_obs),
            "dose": rng.normal(size=n_obs),
            "size_factor": rng.gamma(4.0, 0.25, n_obs),
        },
        index=[f"cell{i}" for i in range(n_obs)],
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)]))


def translated(
    module: pv.module.VAE, theirs: dict[str, np.ndarray], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What belongs to parameters of scvi-tools' VAE, by names and in the shapes of pyrovi's.

    Parts that scvi-tools makes and does not use (heads, an encoder of the library) are left out.
    """
    given = {renamed(name): torch.as_tensor(value) for name, value in theirs.items()}
    result = {name: given[name].reshape(value.shape) for name, value in wanted.items()}
    # in scvi-tools continuous covariates follow the features, in pyrovi they are last
    n_features = {"decoder": module.n_latent, "encoder": module.decoder.scale_head.out_features}
    for network in ["decoder"] + ["encoder"] * module.encode_covariates:
        n_cont = getattr(module, network).layers.layers[0].linear.n_cont
        if n_cont:
            name = f"{network}.layers.layers.0.linear.weight"
            sizes = [n_features[network], n_features[network] + n_cont]
            features, moved, rest = result[name].tensor_split(sizes, 1)
            result[name] = torch.cat([features, rest, moved], 1)
    return result


def part(theirs: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Entries whose name starts with a word, without it."""
    return {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}


def all_cells(model: pv.model.SCVI) -> Minibatch:
    """All cells as one minibatch in double precision."""
    _, _, loader = model.loader(None, None)
    (minibatch,) = loader(model.adata.n_obs)
    tensors = minibatch.tensors.items()
    return minibatch.replace(
        tensors={k: v.double() if v.is_floating_point() else v for k, v in tensors}
    )


def elbo_at_mean(module: pv.module.VAE, minibatch: Minibatch) -> np.ndarray:
    """ELBO of each cell with the latents at the means of their encoders."""
    module.eval()
    with torch.no_grad():
        guide = guide_trace(module, minibatch, {})
        means = {site: guide.nodes[site]["fn"].mean for site in latent_values(guide)}
        parts = elbo_story(module, minibatch)(means)
    return (parts["reconstruction"] - parts["kl_local"]).numpy()


def compare(case: dict[str, Any], data: ad.AnnData, theirs: dict[str, np.ndarray]) -> list[float]:
    """Largest differences of the ELBO, the loss and the (relative) gradient."""
    adata = data.copy()
    pv.model.SCVI.setup_anndata(adata, **case["setup"])
    model = pv.model.SCVI(adata, **case["model"])
    module, minibatch = model.module.double(), all_cells(model)
    empty = {k: v for k, v in module.state_dict().items() if v.numel() == 0}  # no frozen rows
    wanted = {k: v for k, v in module.state_dict().items() if v.numel()}
    module.load_state_dict(translated(module, part(theirs, "state "), wanted) | empty)
    elbo = np.abs(elbo_at_mean(module, minibatch) - theirs["elbo"]).max()

    plan = SVITrainingPlan(module)
    module.train()
    torch.manual_seed(0)
    loss, _ = plan.objective(minibatch, case["kl_weight"])
    loss.backward()
    ours = {name: p.grad for name, p in module.named_parameters()}
    expected = translated(module, part(theirs, "gradient "), ours)
    scale = max(float(g.abs().max()) for g in expected.values())
    gradient = max(float((ours[k] - g).abs().max()) for k, g in expected.items()) / scale
    return [float(elbo), abs(loss.item() - float(theirs["loss"])), gradient]


def main() -> None:
    """Compare all cases."""
    peer = peer_python()
    torch.set_num_threads(1)
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data()
        data.write_h5ad(folder / "data.h5ad")
        (folder / "cases.json").write_text(json.dumps(CASES))
        files = [folder / "data.h5ad", folder / "cases.json", folder]
        run = subprocess.run(
            [peer, HERE / "parity_peer.py", *files], capture_output=True, text=True
        )
        if run.returncode:
            sys.exit(f"scvi-tools failed:\n{run.stderr[-3000:]}")
        for case in CASES:
            theirs = dict(np.load(folder / f"{case['name']}.npz"))
            differences = compare(case, data, theirs)
            worst = max(worst, *differences)
            elbo, loss, gradient = differences
            print(
                f"{case['name']:16} mean ELBO {theirs['elbo'].mean():9.3f}  differences: "
                f"ELBO {elbo:.1e}, loss {loss:.1e}, gradient {gradient:.1e}"
            )
    if not worst <= TOLERANCE:
        sys.exit(f"The two models differ by {worst:.2e}, more than {TOLERANCE}.")


if __name__ == "__main__":
    main()
