"""Saving and loading: round trips, and folders that are not to be trusted."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from tests.model.samples import (
    QUICK,
    SETUP,
    assert_unchanged,
    make_data,
    make_model,
    same_state,
    snapshot,
    state,
)

import pyrovi as pv
from pyrovi.errors import RegistryError, SaveLoadError
from pyrovi.model import SCVI, files, json_codec
from pyrovi.model.base import MODEL_CLASSES

# ---------------------------------------------------------------------- round trips

LIKELIHOODS = ("zinb", "nb", "poisson", "normal")
DISPERSIONS = ("gene", "gene-batch", "gene-label", "gene-cell")


def outputs(model: SCVI, adata: Any = None) -> dict[str, np.ndarray]:
    draws = model.sample_posterior(["mu", "z"], num_samples=2, adata=adata)
    predictive = model.posterior_predictive(num_samples=2, adata=adata)
    return {
        "latent": model.get_latent_representation(adata),
        "elbo": model.get_elbo(adata, return_mean=False, num_samples=2),
        "mu": draws["mu"].values,
        "z": draws["z"].values,
        "X": predictive["X"].values,
    }


def check_round_trip(folder: Path, setup: dict[str, Any] | None = None, **options: Any) -> None:
    adata = make_data(batch_size=12)
    SCVI.setup_anndata(adata, **{**SETUP, **(setup or {})})
    model = SCVI(adata, **{"n_hidden": 4, "n_latent": 2, **options})
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save(folder)
    loaded = SCVI.load(folder)
    assert same_state(state(loaded), state(model))
    expected = outputs(model)
    for name, value in outputs(loaded, adata).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert loaded.registry == model.registry
    assert loaded._init_arguments == model._init_arguments
    assert repr(loaded) == repr(model)


@pytest.mark.parametrize(
    ("likelihood", "dispersion"), list(itertools.product(LIKELIHOODS, DISPERSIONS))
)
def test_every_likelihood_and_dispersion(likelihood: Any, dispersion: Any, tmp_path: Path) -> None:
    check_round_trip(tmp_path / "m", gene_likelihood=likelihood, dispersion=dispersion)


@pytest.mark.parametrize(
    "options",
    [
        {"latent_distribution": "ln"},
        {"log_variational": False},
        {"encode_covariates": True},
        {"encode_covariates": True, "batch_representation": "embedding"},
        {"batch_representation": "embedding", "batch_embedding_dim": 3},
        {"deeply_inject_covariates": False, "n_layers": 2},
        {"use_batch_norm": "none", "use_layer_norm": "both"},
        {"use_batch_norm": "encoder"},
        {"use_observed_lib_size": False, "dispersion": "gene-batch"},
        {"use_observed_lib_size": False, "batch_representation": "embedding"},
        {"dropout_rate": 0.0, "n_latent": 1},
    ],
    ids=str,
)
def test_every_option_of_the_module(options: dict[str, Any], tmp_path: Path) -> None:
    check_round_trip(tmp_path / "m", **options)


@pytest.mark.parametrize(
    "setup",
    [
        {"size_factor_key": "size"},
        dict.fromkeys(SETUP),
        {"categorical_covariate_keys": ["donor", "labels"], "labels_key": None},
    ],
    ids=["size factor", "nothing", "two covariates"],
)
def test_every_setup(setup: dict[str, Any], tmp_path: Path) -> None:
    check_round_trip(tmp_path / "m", setup)


def test_everything_of_a_trained_model_comes_back(tmp_path: Path) -> None:
    model = make_model(epochs=3)
    before = snapshot(model.adata)
    model.save(str(tmp_path / "new" / "folder"))  # parents are made
    assert_unchanged(model.adata, before)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["model.json", "model.safetensors"]
    assert os.listdir(tmp_path / "new") == ["folder"]
    for loaded in (SCVI.load(tmp_path / "new/folder"), pv.load(tmp_path / "new/folder")):
        assert type(loaded) is SCVI
        assert loaded.is_trained
        assert loaded.n_obs_training == model.n_obs_training == 54
        for name in ("train_indices", "validation_indices", "test_indices"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
        assert loaded.history.keys() == model.history.keys()
        for metric, frame in model.history.items():
            pd.testing.assert_frame_equal(loaded.history[metric], frame)
        assert not loaded.module.training
        assert np.isclose(loaded.get_elbo(model.adata), model.get_elbo())


def test_load_then_train_moves_parameters(tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "m")
    loaded = SCVI.load(tmp_path / "m", model.adata)
    before = state(loaded)
    loaded.train(2, lr=0.01, **QUICK)
    still = [k for k, v in state(loaded).items() if np.array_equal(v, before[k])]
    assert still == []
    assert len(loaded.history["elbo_train"]) == 3
    assert same_state(state(model), before)


def test_load_with_other_data(tmp_path: Path) -> None:
    make_model().save(tmp_path / "m")
    other = make_data(seed=8)
    before = snapshot(other)
    loaded = SCVI.load(tmp_path / "m", other)
    assert loaded.adata is other
    loaded.train(1, **QUICK)
    assert_unchanged(other, before)
    with pytest.raises(RegistryError, match=r"missing 2"):
        SCVI.load(tmp_path / "m", other[:, 2:])


def test_data_are_saved_on_request(tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "m", save_anndata=True)
    loaded = SCVI.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.adata.X, model.adata.X)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    with pytest.raises(ValueError, match="without data"):
        SCVI.load(tmp_path / "m", False).get_elbo()
    bare = SCVI.load(tmp_path / "m", False)
    with pytest.raises(ValueError, match="without data"):
        bare.save(tmp_path / "other", save_anndata=True)
    assert os.listdir(tmp_path) == ["m"]


def test_nan_in_the_history_is_kept(tmp_path: Path) -> None:
    model = make_model()
    model._history["elbo_validation"][0] = float("nan")
    model._history["lr-Adam"] = {0: float("inf")}
    model.save(tmp_path / "m")
    history = SCVI.load(tmp_path / "m").history
    assert np.isnan(history["elbo_validation"].iloc[0, 0])
    assert np.isinf(history["lr-Adam"].iloc[0, 0])


# ---------------------------------------------------------------------- arguments as JSON


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -1.5, "text", float("inf"), (1, (2, "a")), [1, [2.0]], {"a": {"b": (1,)}},
        np.float64(2.5), np.int64(3), np.arange(6).reshape(2, 3), np.array([[True, False]]),
        np.array(["a", "bc"]), np.array(["a", None, 3], dtype=object), np.zeros((0, 3), np.float32),
        np.array([np.nan, np.inf], np.float16),
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=["r", "s"]),
        pd.DataFrame(np.eye(2, dtype=np.float32), index=pd.Index([3, 4])),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_codec_round_trip(value: Any) -> None:
    text = json.dumps(json_codec.encode(value, "it"), allow_nan=False)
    back = json_codec.decode(json.loads(text))
    if isinstance(value, pd.DataFrame):
        value.columns = value.columns.map(str)
        pd.testing.assert_frame_equal(back, value)
    elif isinstance(value, np.ndarray):
        np.testing.assert_array_equal(back, value)
        assert (back.dtype, back.shape) == (value.dtype, value.shape)
    else:
        assert back == value


@pytest.mark.parametrize("value", [object(), {1: 2}, {3}, b"x", torch.zeros(1), len, {"a": [len]}])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(SaveLoadError, match=r"^it.* cannot be written as JSON.*pass numbers"):
        json_codec.encode(value, "it")


@pytest.mark.parametrize(
    "value",
    [
        {"__pyrovi__": "code", "value": "import os"},
        {"__pyrovi__": ["array"]},
        {"__pyrovi__": "array", "dtype": "f4"},
        {"__pyrovi__": "array", "dtype": "nonsense", "shape": [1], "items": [1]},
        {"__pyrovi__": "array", "dtype": "<f4", "shape": [2, 2], "items": [1]},
        {"__pyrovi__": "array", "dtype": "<f4", "shape": "x", "items": ["a"]},
        {"__pyrovi__": "float", "value": "one"},
        {"__pyrovi__": "tuple", "items": 3},
        {"__pyrovi__": "frame", "columns": ["a"], "data": [], "index": []},
    ],
    ids=str,
)
def test_damaged_values_are_refused(value: Any) -> None:
    with pytest.raises(SaveLoadError, match="holds a"):
        json_codec.decode(value)


def test_an_argument_that_cannot_be_saved(tmp_path: Path) -> None:
    class Odd(SCVI):
        def __init__(self, adata: Any, hook: Any = None) -> None:
            super().__init__(adata, n_hidden=4)

    adata = make_data()
    Odd.setup_anndata(adata)
    with pytest.raises(SaveLoadError, match=r"argument 'hook' is a builtins.type"):
        Odd(adata, hook=int).save(tmp_path / "m")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------- folders


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_model().save(tmp_path / "m")
    return tmp_path / "m"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


def test_nothing_is_overwritten_without_asking(saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    model = make_model(n_latent=2)
    with pytest.raises(SaveLoadError, match=r"exists.*overwrite=True"):
        model.save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    model.save(saved, overwrite=True)
    assert SCVI.load(saved).module.n_latent == 2
    assert os.listdir(saved.parent) == ["m"]


def test_foreign_files_are_not_overwritten(saved: Path, tmp_path: Path) -> None:
    model = make_model(epochs=0)
    (saved / "thesis.tex").write_text("years")
    with pytest.raises(SaveLoadError, match=r"more than a saved model \(thesis\.tex\)"):
        model.save(saved, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveLoadError, match=r"a file"):
        model.save(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(SaveLoadError, match="Cannot write to"):
        model.save(tmp_path / "file" / "inside")
    assert sorted(os.listdir(tmp_path)) == ["file", "m"]


def test_relative_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model(epochs=0)
    model.save("a/../b/")
    SCVI.load("b")
    for path in (".", "", "..", "/"):
        with pytest.raises(SaveLoadError, match="more than a saved model"):
            model.save(path, overwrite=True)
    assert os.listdir(tmp_path) == ["b"]


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(SaveLoadError, match=r"is not a saved model: it has no model\.json"):
        pv.load(tmp_path / "none")
    with pytest.raises(SaveLoadError, match="is not a saved model"):
        pv.load(tmp_path)
    (tmp_path / "model.json").mkdir()
    with pytest.raises(SaveLoadError, match="is not a saved model"):
        pv.load(tmp_path)
    (tmp_path / "model.json").rmdir()
    for text in ("[]", "3", "null", "{}", '{"format_name": "other"}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(SaveLoadError, match=r"is not the description of a pyrovi model"):
            pv.load(tmp_path)


@pytest.mark.parametrize("version", [2, 99, 10**30])
def test_newer_format(saved: Path, version: int) -> None:
    edit(saved, lambda d: d.update(format=version, versions={"pyrovi": "7.0"}))
    with pytest.raises(
        SaveLoadError, match=rf"format {version} \(written by pyrovi 7\.0\).*Update"
    ):
        pv.load(saved)


@pytest.mark.parametrize("version", [None, "1", 0, -1, True, [1], 1.5])
def test_damaged_format(saved: Path, version: Any) -> None:
    edit(saved, lambda d: d.update(format=version))
    with pytest.raises(SaveLoadError, match="its format is"):
        pv.load(saved)


def test_truncated_json(saved: Path) -> None:
    """Cut anywhere, it is refused: no prefix of the description is taken for a whole one."""
    whole = (saved / "model.json").read_bytes()
    for cut in [0, 1, 2, 17, *range(50, len(whole) - 2, 137), len(whole) - 2]:
        (saved / "model.json").write_bytes(whole[:cut])
        with pytest.raises(SaveLoadError, match=r"model\.json.* is damaged"):
            pv.load(saved)
    for text in (b"\xff\xfe" + whole, b"[" * 100_000, whole[:40] + b"\x00" + whole[40:]):
        (saved / "model.json").write_bytes(text)
        with pytest.raises(SaveLoadError, match="is damaged"):
            pv.load(saved)


def test_every_key_of_the_json_is_missed_by_name(saved: Path) -> None:
    whole = (saved / "model.json").read_text()
    optional = {"saved_at", "frozen"}
    for key in set(json.loads(whole)) - optional:
        (saved / "model.json").write_text(whole)
        edit(saved, lambda d, key=key: d.pop(key))
        with pytest.raises(SaveLoadError, match=key):
            pv.load(saved)
        (saved / "model.json").write_text(whole)
        edit(saved, lambda d, key=key: d.update({key: [None]}))
        with pytest.raises(SaveLoadError, match=r"is damaged|is not the description"):
            pv.load(saved)
    (saved / "model.json").write_text(whole)
    for key in optional:
        edit(saved, lambda d, key=key: d.pop(key))
    pv.load(saved)


def _walk(value: Any, path: tuple[Any, ...] = ()) -> Any:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from _walk(item, (*path, key))


@pytest.mark.slow
def test_a_damaged_registry_never_gives_another_error(saved: Path) -> None:
    """Whatever part of the registry, the arguments or the history is missing or of another type."""
    whole = (saved / "model.json").read_text()
    description = json.loads(whole)
    paths = [
        path for path in _walk(description) if path[0] in ("registry", "arguments", "training")
    ]
    harmless = 0
    for path, damage in zip(paths, itertools.cycle(("gone", "text", "number", "list"))):
        broken = json.loads(whole)
        place = broken
        for key in path[:-1]:
            place = place[key]
        if damage == "gone":
            del place[path[-1]]
        else:
            place[path[-1]] = {"text": "x", "number": -3, "list": [[]]}[damage]
        (saved / "model.json").write_text(json.dumps(broken))
        try:
            pv.load(saved)
        except SaveLoadError as error:
            assert len(str(error)) > 40  # noqa: PT017
        else:
            harmless += 1  # e.g. an argument that falls back to its default
    assert len(paths) > 40
    assert harmless < 0.75 * len(paths)


def test_damaged_tensors(saved: Path) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for cut in (0, 4, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(SaveLoadError, match="is damaged or no tensor file"):
            pv.load(saved)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(SaveLoadError, match="is damaged or no tensor file"):
        pv.load(saved)
    path.unlink()
    with pytest.raises(SaveLoadError, match=r"it has no model\.safetensors"):
        pv.load(saved)


def test_tensors_that_do_not_fit(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = saved / "model.safetensors"
    tensors = load_file(path)
    name = "module.decoder.scale_head.weight"
    for change in (
        {**tensors, name: tensors[name][:, :-1].contiguous()},
        {**tensors, name: tensors[name].T.contiguous()},
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, "module.extra": torch.zeros(1)},
    ):
        save_file(change, path)
        with pytest.raises(SaveLoadError, match=r"do not fit SCVI as it is now"):
            pv.load(saved)


def test_damaged_data(tmp_path: Path) -> None:
    make_model().save(tmp_path / "m", save_anndata=True)
    path = tmp_path / "m" / "adata.h5ad"
    whole = path.read_bytes()
    for text in (whole[: len(whole) // 2], b"", pickle.dumps({})):
        path.write_bytes(text)
        with pytest.raises(SaveLoadError, match=r"adata\.h5ad.* is damaged.*adata=False"):
            pv.load(tmp_path / "m")
        pv.load(tmp_path / "m", False)


# ---------------------------------------------------------------------- malice


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_a_pickle_is_never_opened(saved: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    torch.save(Malice(trap), foreign / "model.pt")
    with pytest.raises(SaveLoadError, match=r"holds a \.pt file: a pickle, which pyrovi never"):
        pv.load(foreign)
    for name in ("model.safetensors", "model.json", "adata.h5ad"):
        before = (saved / name).read_bytes() if (saved / name).exists() else None
        (saved / name).write_bytes(pickle.dumps(Malice(trap)))
        with pytest.raises(SaveLoadError):
            pv.load(saved)
        (saved / name).write_bytes(before) if before else (saved / name).unlink()
    torch.save(Malice(trap), saved / "model.pt")
    pv.load(saved)  # beside the real files it is ignored
    assert not trap.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("trap_module", "Model"),
        ("pyrovi.model.trap_module", "Model"),
        ("pyrovi.model", "load_any"),
        ("pyrovi.model", "BaseModelClass"),
        ("os", "system"),
        ("builtins", "eval"),
        ("../trap_module", "SCVI"),
        ("", ""),
    ],
)
def test_nothing_is_imported_or_called(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    (tmp_path / "trap_module.py").write_text("open('trap', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    edit(saved, lambda d: d.update({"module": module, "class": name}))
    for load in (pv.load, SCVI.load):
        with pytest.raises(SaveLoadError, match=r"has not been imported.*runs no code"):
            load(saved)
    assert not (tmp_path / "trap").exists()
    assert "trap_module" not in sys.modules


@pytest.mark.parametrize("method", ["load", "save", "__init__", "register", "__subclasshook__"])
def test_a_file_cannot_have_methods_called(saved: Path, tmp_path: Path, method: str) -> None:
    edit(
        saved,
        lambda d: d["registry"].update(
            setup_method_name=method, setup_args={"dir_path": str(tmp_path / "trap")}
        ),
    )
    with pytest.raises(RegistryError, match=f"setup method '{method}'"):
        pv.load(saved, make_data())
    assert not (tmp_path / "trap").exists()


def test_a_users_class_of_the_same_name(saved: Path, tmp_path: Path) -> None:
    """Neither hides the other."""
    ours = SCVI

    class SCVI_(ours):  # type: ignore[misc, valid-type]
        pass

    theirs = type("SCVI", (ours,), {"__module__": "my_models"})
    try:
        assert type(pv.load(saved)) is ours
        adata = make_data()
        theirs.setup_anndata(adata)
        theirs(adata, n_hidden=4).save(tmp_path / "theirs")
        assert type(pv.load(tmp_path / "theirs")) is theirs
        assert type(ours.load(tmp_path / "theirs")) is theirs  # a subclass
        with pytest.raises(
            SaveLoadError, match=r"pyrovi\.model\.scvi\.SCVI, not a my_models\.SCVI"
        ):
            theirs.load(saved)
        with pytest.raises(SaveLoadError, match=r"not a .*SCVI_"):
            SCVI_.load(saved)
    finally:
        MODEL_CLASSES.pop(("my_models", "SCVI"), None)
    with pytest.raises(SaveLoadError, match=r"my_models\.SCVI, which has not been imported"):
        pv.load(tmp_path / "theirs")
    # a class that has moved since: the caller names it
    moved = type("SCVI", (ours,), {"__module__": "my_package.models"})
    try:
        assert type(moved.load(tmp_path / "theirs")) is moved
    finally:
        MODEL_CLASSES.pop(("my_package.models", "SCVI"), None)


def test_frozen_parts_that_do_not_exist(saved: Path) -> None:
    for frozen in (
        {"slices": {"decoder.none": {"axis": 0, "frozen": [0]}}},
        {"slices": {"decoder.scale_head.weight": {"axis": 0, "frozen": [10**6]}}},
        {"vectors": {"decoder": 2}},
        {"parameters": ["nothing.at.all"]},
        {"parameters": 3},
        [1],
    ):
        edit(saved, lambda d, frozen=frozen: d.update(frozen=frozen))
        with pytest.raises(SaveLoadError, match="does not fit SCVI"):
            pv.load(saved)


# ---------------------------------------------------------------------- full disks, kills


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A real file system of 128 KiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("save_anndata", [False, True])
def test_full_disk(small_disk: Path, save_anndata: bool) -> None:
    make_model(epochs=0).save(small_disk / "m")
    before = {p.name: p.read_bytes() for p in (small_disk / "m").iterdir()}
    size = {"n_hidden": 8} if save_anndata else {"n_hidden": 512}
    big = make_model(make_data(batch_size=400) if save_anndata else None, epochs=0, **size)
    for path in ("m", "other"):
        with pytest.raises(SaveLoadError, match=r"(?s)could not be saved.*Nothing was left behind"):
            big.save(small_disk / path, overwrite=True, save_anndata=save_anndata)
        assert os.listdir(small_disk) == ["m"]
        assert {p.name: p.read_bytes() for p in (small_disk / "m").iterdir()} == before
    SCVI.load(small_disk / "m")


@pytest.mark.parametrize("step", ["tensors", "json", "sync", "move"])
def test_failing_writes(saved: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    import safetensors.torch

    model = make_model(n_latent=2, epochs=0)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    original = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        return fail() if Path(target).name == "m" and "-" in self.name else original(self, target)

    target, name, replacement = {
        "tensors": (safetensors.torch, "save_file", fail),
        "json": (json, "dump", fail),
        "sync": (os, "fsync", fail),
        "move": (Path, "rename", fail_for_new),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, replacement)
        with pytest.raises(SaveLoadError, match=r"No space left.*saved there before is untouched"):
            model.save(saved, overwrite=True)
    assert os.listdir(saved.parent) == ["m"]
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    model.save(saved, overwrite=True)
    assert SCVI.load(saved).module.n_latent == 2


def test_a_process_that_died_between_the_two_renames(saved: Path) -> None:
    previous = saved.with_name(".m.previous")
    saved.rename(previous)
    assert SCVI.load(saved).module.n_latent == 3
    assert os.listdir(saved.parent) == ["m"]
    saved.rename(previous)
    with pytest.raises(SaveLoadError, match="exists"):  # it is there for saving, too
        make_model(epochs=0).save(saved)
    # after the second rename
    files.shutil.copytree(saved, previous)
    make_model(n_latent=2, epochs=0).save(saved, overwrite=True)
    assert SCVI.load(saved).module.n_latent == 2
    assert os.listdir(saved.parent) == ["m"]


KILLED = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from tests.model.samples import make_model
model = make_model(epochs=0)
print("ready", flush=True)
n = 0
while True:
    n += 1
    with torch.no_grad():
        for p in model.module.parameters():
            p.fill_(n)
    model._history = {"elbo_train": {0: float(n)}}
    model.save(sys.argv[1], overwrite=True)
"""


@pytest.mark.slow
def test_killed_while_saving(tmp_path: Path) -> None:
    """SIGKILL at any moment: the folder holds one whole model."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(["src", *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "m")],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1 + 0.3 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        loaded = SCVI.load(tmp_path / "m")
        n = loaded.history["elbo_train"].iloc[0, 0]
        assert {p.unique().item() for p in loaded.module.parameters()} == {n}
        seen.add(n)
    assert max(seen) > 1


# ---------------------------------------------------------------------- other data kinds


def test_backed_data_can_be_saved_with(tmp_path: Path) -> None:
    make_data().write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    model = make_model(backed, epochs=0)
    model.save(tmp_path / "m", save_anndata=True)
    loaded = SCVI.load(tmp_path / "m")
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    assert Path(backed.filename) == tmp_path / "a.h5ad", "the user's data point to the saved copy"
    backed.file.close()


def test_both_files_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    make_model(make_data(), epochs=0).save(tmp_path / "m")
    (tmp_path / "new").touch()
    expected = (tmp_path / "new").stat().st_mode
    assert {p.stat().st_mode for p in (tmp_path / "m").iterdir()} == {expected}


def test_a_target_that_cannot_be_written_is_refused_at_once() -> None:
    with pytest.raises(SaveLoadError, match=r"Cannot write to '/proc'.*another folder"):
        files.check_target(Path("/proc/models/scvi"), overwrite=False)
