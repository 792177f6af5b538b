"""Configuration of the documentation: Sphinx with MyST notebooks and autosummary."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import api_pages  # noqa: E402

project = "pyrovi"
author = "The pyrovi developers"
copyright = "2026, The pyrovi developers"
release = version = installed_version("pyrovi")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "jupyter_execute"]
templates_path = ["_templates"]

# API pages: docstrings are NumPy style, and types are read from the annotations.
# Named one by one: left to itself, autosummary overlooks pages that are new since the last build.
autosummary_generate = [
    page.relative_to(HERE).as_posix() for page in api_pages.write(HERE / "api" / "generated")
]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autoclass_content = "class"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False

# Notebooks run when the documentation is built; one that fails, fails the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"  # notices of packages about the machine the pages are built on

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"pyrovi {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
