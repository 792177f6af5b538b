"""The commands: train, query, info; and how they fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import pyrovi as pv
from pyrovi.cli.classes import known_models
from pyrovi.errors import SaveLoadError


def test_training_uses_its_options(run, data_file, model_dir, tmp_path) -> None:
    adata = anndata.read_h5ad(data_file)
    pv.settings.seed = 5
    pv.model.SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    same = pv.model.SCVI(adata, n_latent=3, n_hidden=8, gene_likelihood="nb")
    same.train(2, accelerator="cpu", enable_progress_bar=False)
    loaded = pv.load(model_dir, adata)
    expected = same.get_latent_representation()
    np.testing.assert_array_equal(loaded.get_latent_representation(), expected)
    assert sorted(p.name for p in model_dir.parent.iterdir()) == ["model"]


def test_data_left_on_disk_give_the_same(run, data_file, model_dir, tmp_path, monkeypatch) -> None:
    """These small data fit in one buffer."""
    with monkeypatch.context() as patch:
        patch.delattr(anndata, "read_h5ad")
        done = run(
            "train", data_file, "--backed", "--batch-key", "batch", "--layer", "counts",
            "--n-latent", 3, "-a", "n_hidden=8", "-a", "gene_likelihood=nb", "--max-epochs", 2,
            "--seed", 5, "--accelerator", "cpu", "--save-data", "--out", tmp_path / "model",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    for model, name in ((tmp_path / "model", "own"), (model_dir, "memory")):
        table = tmp_path / f"{name}.npy"
        done = run("query", model, data_file, "--backed", "--latent", table)
        assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(tmp_path / "own.npy"), np.load(tmp_path / "memory.npy"))


@pytest.mark.slow
def test_half_of_the_cells_from_another_process(data_file, model_dir, tmp_path) -> None:
    adata = anndata.read_h5ad(data_file)
    expected = pv.load(model_dir, adata).get_latent_representation()
    half = np.sort(np.random.default_rng(1).permutation(adata.n_obs)[: adata.n_obs // 2])
    adata[half].write_h5ad(tmp_path / "half.h5ad")
    (tmp_path / "names.txt").write_text("\n".join(adata.obs_names[half]))
    (tmp_path / "rows.txt").write_text("\n".join(map(str, half)))
    pieces = [
        [tmp_path / "half.h5ad"],
        [data_file, "--obs-names", tmp_path / "names.txt"],
        [data_file, "--indices", tmp_path / "rows.txt"],
    ]
    for number, words in enumerate(pieces):
        out = tmp_path / f"{number}.npy"
        command = [sys.executable, "-m", "pyrovi.cli", "query", model_dir, *words, "--latent", out]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        np.testing.assert_allclose(np.load(out), expected[half], rtol=0, atol=1e-6)


def test_query_writes_labelled_tables(run, data_file, model_dir, tmp_path) -> None:
    adata = anndata.read_h5ad(data_file)
    model = pv.load(model_dir, adata)
    done = run(
        "query", model_dir, data_file, "--latent", tmp_path / "z.csv",
        "--normalized-expression", tmp_path / "rho.h5ad",
        "--site", f"mu={tmp_path / 'mu.csv'}", "--num-samples", 7, "--seed", 3, "--elbo",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    latent = pd.read_csv(tmp_path / "z.csv", index_col=0)
    np.testing.assert_allclose(latent, model.get_latent_representation(), rtol=1e-5)
    rho = anndata.read_h5ad(tmp_path / "rho.h5ad")
    expected = model.sample_posterior("rho", num_samples=7, reduce="mean", seed=3)["rho"]
    np.testing.assert_allclose(rho.X, expected, rtol=1e-5)
    mu = pd.read_csv(tmp_path / "mu.csv", index_col=0)
    for table in (latent.index, rho.obs_names, mu.index):
        assert list(table) == list(adata.obs_names)
    assert list(rho.var_names) == list(mu.columns) == list(adata.var_names)
    assert f"ELBO {model.get_elbo(num_samples=7, seed=3):.4f} nats" in done.output


def test_statistic_is_that_of_the_draws(run, data_file, model_dir, tmp_path) -> None:
    out = tmp_path / "mu.npy"
    words = ["--site", f"mu={out}", "--statistic", "q10", "--num-samples", 9]
    assert run("query", model_dir, data_file, *words).exit_code == 0
    model = pv.load(model_dir, anndata.read_h5ad(data_file))
    expected = model.sample_posterior("mu", num_samples=9, reduce="q10")["mu"]
    np.testing.assert_allclose(np.load(out), expected, rtol=1e-6)


def test_info_shows_what_the_model_is(run, model_dir) -> None:
    done = run("info", model_dir)
    assert done.exit_code == 0, done.output
    for text in ("SCVI", "n_latent", "batch_key", "n_vars", "epochs", "torch", "rho", "observed"):
        assert text in done.output
    description = json.loads((model_dir / "model.json").read_text())
    last = description["history"]["elbo_validation"]["1"]
    assert f"{-last:.2f}" in done.output


def test_a_class_of_ones_own(run, data_file, tmp_path, monkeypatch) -> None:
    (tmp_path / "my_factors.py").write_text(
        "import pyro.distributions as dist\n"
        "from pyrovi.model import SCVI\n"
        "class MyFactors(SCVI):\n"
        "    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ["--model", "my_factors:MyFactors", "--max-epochs", 1, "--accelerator", "cpu"]
    done = run("train", data_file, *words, "-a", "n_hidden=4", "--out", "model")
    assert done.exit_code == 0, done.output
    done = run("info", "model", "--import", "my_factors")
    assert "MyFactors" in done.output
    assert "rho" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.h5ad"], "There is no file 'nowhere.h5ad'"),
        (["{data}", "--model", "SCVII"], "There is no model class 'SCVII'. pyrovi has: PPCA"),
        (["{data}", "--batch-key", "donor"], "donor"),
        (["{data}", "--layer", "raw"], "raw"),
        (["{data}", "-a", "n_hidden"], "name=value, e.g. n_layers=2; got 'n_hidden'"),
        (["{data}", "-a", "dispersion=cell"], "dispersion must be one of"),
        (["{text}"], "cannot be read as .h5ad data"),
    ],
)
def test_errors_of_training_leave_nothing(
    run, data_file, tmp_path, monkeypatch, words, message
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.h5ad"
    text.write_text("no data")
    words = [word.format(data=data_file, text=text) for word in words]
    done = run("train", *words, "--out", "model", "--max-epochs", 1)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["text.h5ad"]


def test_an_existing_folder_is_refused_before_training(run, data_file, model_dir) -> None:
    before = (model_dir / "model.json").read_bytes()
    start = time.perf_counter()
    done = run("train", data_file, "--out", model_dir, "--max-epochs", 10_000)
    assert done.exit_code == 2
    assert "exists" in done.output
    assert time.perf_counter() - start < 20
    assert (model_dir / "model.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Nothing was asked for"),
        (["--latent", "z.txt"], "unknown suffix; tables are .csv, .npy, .h5ad"),
        (["--latent", "no/z.csv"], "There is no folder 'no'"),
        (["--site", "nu=nu.csv"], "SCVI has no site 'nu'; its sites are: z,"),
        (["--site", "mu"], "--site takes SITE=FILE"),
        (["--elbo", "--obs-names", "{names}"], "1 of the 2 names in"),
        (["--elbo", "--indices", "{rows}"], "Entry 2 of"),
        (["--elbo", "--indices", "{rows}", "--obs-names", "{names}"], "not both"),
    ],
)
def test_errors_of_queries_leave_nothing(
    run, data_file, model_dir, tmp_path, monkeypatch, words, message
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (tmp_path / "names").write_text("cell_1\nnobody\n")
    (tmp_path / "rows").write_text("0\n60\n")
    words = [word.format(names=tmp_path / "names", rows=tmp_path / "rows") for word in words]
    done = run("query", model_dir, data_file, *words)
    assert done.exit_code == 2
    assert message in done.output
    assert not list(folder.iterdir())


def test_debug_shows_the_error_itself(run, tmp_path) -> None:
    done = run("--debug", "info", tmp_path)
    assert isinstance(done.exception, SaveLoadError)
    done = run("info", tmp_path)
    assert done.exit_code == 2
    assert "SaveLoadError: " in done.output
    assert "is not a saved model" in done.output


@pytest.mark.parametrize("command", ["train", "query", "info", "demo"])
def test_help_teaches_by_example(run, command) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"$ pyrovi {command}" in done.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from pyrovi.cli import app\n"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'pyro', 'anndata', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_demo_on_given_data(run, data_file, tmp_path) -> None:
    done = run(
        "demo", "--data", data_file, "--labels-key", "labels", "--layer", "counts",
        "--out", tmp_path / "out", "--max-epochs", 1, "--num-draws", 3,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for text in ("held out", "knn_accuracy", "in 90% interval", "report.html"):
        assert text in done.output
    assert Path(tmp_path / "out" / "report.html").is_file()


def test_version(run) -> None:
    assert run("--version").output.strip() == f"pyrovi {pv.__version__}"


def test_warnings_are_shown_once_without_code(run, data_file, tmp_path) -> None:
    adata = anndata.read_h5ad(data_file)
    adata.X[:, 0] += 1  # so that no cell is empty
    adata.X[:, 3] = 0
    adata.write_h5ad(tmp_path / "cells.h5ad")
    done = run(
        "train", tmp_path / "cells.h5ad", "--max-epochs", 1, "-a", "n_hidden=4",
        "--accelerator", "cpu", "--out", tmp_path / "model",
    )  # fmt: skip
    assert done.exit_code == 0
    assert done.output.count("Warning: ") == 1
    assert "'gene_3'" in done.output
    assert "warn_" not in done.output


@pytest.mark.parametrize(
    ("threads", "size", "expected"), [(None, 100, 1), (None, 10**9, 2), (3, 100, 3)]
)
def test_small_data_take_one_thread(monkeypatch, threads, size, expected) -> None:
    import torch

    from pyrovi.cli.demo import _set_threads

    used = [2]
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    _set_threads(threads, size)
    assert used[-1] == expected


def test_info_of_a_damaged_model_is_an_error(run, model_dir, tmp_path) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(model_dir, damaged)
    tensors = damaged / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-40])
    done = run("info", damaged)
    assert done.exit_code == 2
    assert "damaged" in done.output


def test_wrong_options_of_lightning_and_models_are_one_message(run, data_file, tmp_path) -> None:
    for words in (("--accelerator", "abacus"), ("-a", "n_hiden=4")):
        done = run("train", data_file, "--max-epochs", 1, "--out", tmp_path / "m", *words)
        assert done.exit_code == 2, done.output
        assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_further_arguments_of_the_setup(run, data_file, tmp_path) -> None:
    adata = anndata.read_h5ad(data_file)
    labels = adata.obs["labels"].astype(str).to_numpy()
    labels[::2] = "unknown"
    adata.obs["partly"] = labels
    adata.write_h5ad(tmp_path / "cells.h5ad")
    words = ["train", tmp_path / "cells.h5ad", "--model", "SCANVI", "--labels-key", "partly"]
    rest = ["-a", "n_hidden=8", "--max-epochs", 1, "--accelerator", "cpu", "--out"]
    done = run(*words, "-s", "unlabeled_category=unknown", *rest, tmp_path / "model")
    assert done.exit_code == 0, done.output
    loaded = pv.load(tmp_path / "model", adata)
    assert loaded.unlabeled_category == "unknown"
    assert set(loaded.predict()) <= set(labels) - {"unknown"}
    done = run(*words, "-s", "unlabelled=unknown", *rest, tmp_path / "other")
    assert done.exit_code != 0
    assert "does not take 'unlabelled'; it takes:" in str(done.exception) + done.output
    done = run(*words, *rest, tmp_path / "other")
    assert done.exit_code != 0
    assert "unlabeled_category" in str(done.exception) + done.output


def test_arguments_that_a_model_needs(run, data_file, tmp_path) -> None:
    words = ["train", data_file, "--model", "HierarchicalGLM", "--max-epochs", 1]
    words += ["--layer", "counts", "--out", tmp_path / "model"]
    done = run(*words)
    assert done.exit_code == 2
    assert "HierarchicalGLM.setup_anndata needs 'condition_key'; give it: -s" in done.output
    done = run(*words, "-s", "condition_key=labels")
    assert done.exit_code == 0, done.output
    loaded = pv.load(tmp_path / "model", anndata.read_h5ad(data_file))
    assert loaded.get_setup_arg("condition_key") == "labels"


def test_setup_arguments_and_the_models_own_defaults(run, data_file, tmp_path) -> None:
    """What is not asked for is as in Python: batch size, early stopping."""
    out = tmp_path / "model"
    done = run(
        "train", data_file, "--model", "TOTALVI", "--layer", "counts", "--batch-key", "batch",
        "-s", "protein_expression_obsm_key=protein_expression", "-a", "n_hidden=8",
        "--max-epochs", 1, "--accelerator", "cpu", "--save-data", "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = pv.load(out)._training
    assert record is not None
    assert "early_stopping" not in record.options
    done = run("train", data_file, "-s", "nonsense=1", "--out", tmp_path / "other")
    assert done.exit_code != 0
    assert "nonsense" in done.output


def test_mudata_are_set_up_as_such(run, tmp_path) -> None:
    mudata = pytest.importorskip("mudata")
    rna = pv.data.synthetic_iid(batch_size=30, n_genes=12)
    protein = rna.obsm.pop("protein_expression")
    names = pd.DataFrame(index=[f"protein {i}" for i in range(protein.shape[1])])
    other = anndata.AnnData(np.asarray(protein), obs=rna.obs[[]], var=names)
    mdata = mudata.MuData({"rna": rna, "protein": other})
    mdata.write(tmp_path / "cells.h5mu")
    where = json.dumps({"rna_layer": "rna", "protein_layer": "protein"})
    done = run(
        "train", tmp_path / "cells.h5mu", "--model", "TOTALVI", "-s", f"modalities={where}",
        "-a", "n_hidden=8", "--max-epochs", 1, "--accelerator", "cpu", "--out", tmp_path / "model",
    )  # fmt: skip
    assert done.exit_code == 0, done.output


_NETWORKS = ["--layer", "counts", "--n-latent", 2, "-a", "n_hidden=4"]
_MARKERS = '{"T": ["gene_0", "gene_1"], "B": ["gene_2"], "NK": ["gene_3"]}'
# Model class -> its setup and arguments on the command line, and how the names of its latent
# dimensions begin (None without a latent space).
_MODELS = {
    "PPCA": (["--n-latent", 2], "Z_"),
    "FactorAnalysis": (["--n-latent", 2], "Z_"),
    "SCVI": (_NETWORKS, "latent_"),
    "LinearSCVI": (_NETWORKS, "Z_"),
    "AmortizedLDA": (["--layer", "counts", "-a", "n_topics=2", "-a", "n_hidden=4"], "topic_"),
    "SCANVI": (
        [*_NETWORKS, "--labels-key", "labels", "-s", "unlabeled_category=label_0"],
        "latent_",
    ),
    "TOTALVI": (
        [*_NETWORKS, "-s", "protein_expression_obsm_key=protein_expression"],
        "latent_",
    ),
    "CellAssign": (["--layer", "counts", "-a", f"cell_type_markers={_MARKERS}"], None),
    "HierarchicalGLM": (["--layer", "counts", "-s", "condition_key=labels"], None),
}
_LABELS = {"SCANVI": ["label_1", "label_2"], "CellAssign": ["T", "B", "NK"]}


def test_every_model_has_its_line() -> None:
    assert set(_MODELS) == set(known_models()) - {"PyroModel"}
    assert set(_LABELS) == set(known_models(having="predict"))


@pytest.mark.parametrize("name", _MODELS)
def test_each_model_is_trained_and_queried(run, data_file, tmp_path, name) -> None:
    words, dimension = _MODELS[name]
    adata = anndata.read_h5ad(data_file)
    model, latent, types = (tmp_path / n for n in ("model", "z.csv", "types.csv"))
    done = run(
        "train", data_file, "--model", name, *words, "--max-epochs", 2, "--accelerator", "cpu",
        "--out", model,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    asked = ["--num-samples", 3, "--elbo"]
    asked += ["--latent", latent] if dimension else []
    asked += ["--predict", types] if name in _LABELS else []
    done = run("query", model, data_file, *asked)
    assert done.exit_code == 0, done.output
    assert "nats per observation" in done.output
    if dimension:
        table = pd.read_csv(latent, index_col=0)
        assert list(table.index) == list(adata.obs_names)
        assert list(table.columns) == [f"{dimension}0", f"{dimension}1"]
        assert np.isfinite(table.to_numpy()).all()
        assert table.to_numpy().std() > 0
    if name in _LABELS:
        _check_types(run, model, data_file, types, _LABELS[name])
    else:
        done = run("query", model, data_file, "--predict", types)
        assert done.exit_code == 2
        assert f"{name} predicts no labels. Models that do: SCANVI, CellAssign" in done.output


def _check_types(run, model, data_file, types, labels) -> None:
    """Labels and probabilities, in every format; codes of the types are refused."""
    adata = anndata.read_h5ad(data_file)
    table = pd.read_csv(types, index_col=0)
    assert list(table.index) == list(adata.obs_names)
    assert list(table.columns) == ["label", *labels]
    np.testing.assert_allclose(table[labels].sum(axis=1), 1, atol=1e-5)
    assert list(table["label"]) == list(table[labels].idxmax(axis=1))
    loaded = pv.load(model, adata)
    soft = {"soft": True} if isinstance(loaded, pv.model.SCANVI) else {}
    expected = loaded.predict(adata, num_samples=3, seed=0, **soft)
    np.testing.assert_allclose(table[labels], expected, atol=1e-5)
    rows = types.with_name("rows.txt")
    rows.write_text("4\n2\n")
    for suffix in (".npy", ".h5ad"):
        out = types.with_suffix(suffix)
        words = ["--predict", out, "--indices", rows]
        assert run("query", model, data_file, *words).exit_code == 0
    assert np.load(types.with_suffix(".npy")).shape == (2, len(labels))
    stored = anndata.read_h5ad(types.with_suffix(".h5ad"))
    assert list(stored.obs_names) == list(adata.obs_names[[4, 2]])
    assert list(stored.var_names) == labels
    assert list(stored.obs["label"]) == [labels[k] for k in stored.X.argmax(1)]
    codes = types.with_name("codes.csv")
    done = run("query", model, data_file, "--site", f"c={codes}")
    assert done.exit_code == 2
    assert "'c' are codes of categories" in done.output
    assert "On the command line: --predict FILE" in done.output
    assert not codes.exists()


def test_predictions_of_ones_own_class_are_tables(run, data_file, tmp_path, monkeypatch) -> None:
    (tmp_path / "my_labels.py").write_text(
        "from pyrovi.model import SCVI\n"
        "class MyLabels(SCVI):\n"
        "    def predict(self, adata, indices, batch_size, num_samples):\n"
        "        return ['T'] * len(indices)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ["--model", "my_labels:MyLabels", "--max-epochs", 1, "--accelerator", "cpu"]
    assert run("train", data_file, *words, "-a", "n_hidden=4", "--out", "model").exit_code == 0
    done = run("query", "model", data_file, "--import", "my_labels", "--predict", "types.csv")
    assert done.exit_code == 2
    assert "MyLabels.predict() gave a list. Expected a DataFrame" in done.output
