"""The report's account of the data, and of what it takes to make the same results again."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pyrovi._settings import settings
from pyrovi.criticism.elpd import has_observations
from pyrovi.criticism.report_blocks import Block, Code, Folded, Section, Table, plain
from pyrovi.criticism.report_subject import Subject

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

_PACKAGES = ("pyrovi", "torch", "pyro-ppl", "lightning", "anndata", "arviz", "numpy", "scipy")
_SHOWN_CATEGORIES = 12
_MAX_JSON = 20_000


def data_section(subject: Subject) -> Section:
    """Sizes, fields and covariates of the data."""
    import pandas as pd

    model = subject.model
    of_rows = "observations" if has_observations(model) else "rows of data"
    sizes = {of_rows: model.adata_manager.n_obs} | {
        name.removeprefix("n_"): value
        for name, value in model.summary_stats.items()
        if name != "n_obs" and value
    }
    sets = {
        "training": model.train_indices,
        "held out (validation)": model.validation_indices,
        "held out (test)": model.test_indices,
    }
    if not has_observations(model):
        sets = {}
    split = {name: 0 if rows is None else len(rows) for name, rows in sets.items()}
    rows = pd.DataFrame(
        {"number": [*sizes.values(), *split.values()]},
        index=pd.Index([*sizes, *split], name="of"),
    )
    blocks: list[Block] = [
        Table(rows, "Sizes; for each categorical field, its number of categories."),
        Table(
            _fields(model),
            "Fields: what each tensor of model and guide is in the data, and its shape for one "
            "observation.",
        ),
        *_covariates(model),
    ]
    return Section("Data", blocks, values={"data": {"sizes": sizes, "split": split}})


def _fields(model: BaseModelClass) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for key, entry in model.registry["field_registries"].items():
        place, tensor = entry["data_registry"], entry["tensor"]
        if not place or tensor is None or place["attr_name"] is None:
            continue
        if place["attr_name"] == "obs" and place["attr_key"] is None:
            continue  # not given: the same for all observations
        owner = "adata" if place["mod_key"] is None else f"mdata[{place['mod_key']!r}]"
        at = "" if place["attr_key"] is None else f"[{place['attr_key']!r}]"
        shape = " × ".join(f"{size:,}" for size in tensor["shape"]) or "one number"
        rows.append((key, f"{owner}.{place['attr_name']}{at}", tensor["kind"], shape))
    columns = ["field", "place", "kind", "shape"]
    return pd.DataFrame(rows, columns=columns).set_index("field")


def _covariates(model: BaseModelClass) -> list[Block]:
    """How many observations each category has, and how numbers are spread."""
    import numpy as np
    import pandas as pd

    categories, numbers = [], []
    manager = model.adata_manager
    for key, entry in model.registry["field_registries"].items():
        place, tensor = entry["data_registry"], entry["tensor"]
        if not place or tensor is None or place["attr_name"] != "obs" or not place["attr_key"]:
            continue
        values = np.asarray(manager.get_from_registry(key)).ravel()
        names = entry["state_registry"].get("categorical_mapping")
        if names is not None:
            counts = np.bincount(values.astype(np.int64), minlength=len(names))
            shown = [f"{name} ({n:,})" for name, n in zip(names, counts, strict=False)]
            more = len(shown) - _SHOWN_CATEGORIES
            text = ", ".join(shown[:_SHOWN_CATEGORIES])
            categories.append((key, len(names), text + (f" and {more} more" if more > 0 else "")))
        else:
            spread = (values.mean(), values.std(), values.min(), values.max())
            numbers.append((key, *(float(x) for x in spread)))
    blocks: list[Block] = []
    if categories:
        frame = pd.DataFrame(categories, columns=["field", "categories", "observations of each"])
        blocks.append(Table(frame.set_index("field"), "Categorical fields."))
    if numbers:
        frame = pd.DataFrame(numbers, columns=["field", "mean", "sd", "smallest", "largest"])
        blocks.append(Table(frame.set_index("field"), "Numerical fields."))
    return blocks


def reproducibility_section(subject: Subject) -> Section:
    """Versions, seeds, and the registry."""
    import pandas as pd

    model, seed = subject.model, subject.seed
    rows: dict[str, Any] = {
        "seed of data split, initialisation and training": settings.seed,
        "seed of the draws of this report": settings.seed if seed is None else seed,
        "device": str(model.device),
        "platform": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        **{package: found for package in _PACKAGES if (found := _version(package))},
    }
    table = pd.DataFrame(
        {"value": [str(plain(v)) for v in rows.values()]},
        index=pd.Index(list(rows), name="setting"),
    )
    text = json.dumps(plain(model.registry), indent=1)
    if len(text) > _MAX_JSON:
        text = f"{text[:_MAX_JSON]}\n... ({len(text):,} characters; all of it is in the JSON file)"
    return Section(
        "Reproducibility",
        [
            Table(
                table,
                "The seed of training is that of the settings now; what else training was given is "
                "under “Inference”.",
            ),
            Folded("Registry of the data (JSON)", [Code(text)]),
        ],
        values={"reproducibility": rows, "registry": model.registry},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
