# `make demo` and `make test` need only Python >= 3.11 and make: they create the virtual environment
# with the versions of constraints.txt on first use, and again when the requirements change.
#
#   PYTHON   interpreter that creates the environment   (default: python3)
#   VENV     folder of the environment                  (default: .venv)
#   ARGS     more arguments for the command of a target, e.g. make test ARGS="-m 'not slow'"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.pyrovi-installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs bench acceptance clean clean-venv

help:
	@echo "make demo        fit SCVI to real blood cells, check it, write demo_output/report.html"
	@echo "make test        run the whole test suite"
	@echo "make lint        style, formatting, types, import order"
	@echo "make docs        build the documentation into docs/_build/html; warnings are errors"
	@echo "make bench       compare with scvi-tools and NumPyro on the real data of PYROVI_DATA; memory and scaling"
	@echo "make acceptance  judge the package on real data (tests/acceptance)"
	@echo "make clean       remove what the targets wrote, except the virtual environment"
	@echo "make clean-venv  remove the virtual environment"

# torch goes first and by itself: nothing that comes later can then bring another version of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pyrovi needs Python >= 3.11; this is " + sys.version.split()[0] + ". Name another: make PYTHON=/path/to/python3")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/pyrovi demo $(ARGS)

# Two processes share the machine: threads of BLAS beside them would only wait for one another.
test: $(STAMP)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html $(ARGS)

bench: $(STAMP)
	failed=; for script in parity_scvi queries speed "out_of_core --rounds 1" scaling "run $(ARGS)"; do \
		set -- $$script; name=$$1; shift; \
		$(BIN)/python tests/benchmarks/$$name.py $$* || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "Below what they have to reach:$$failed"; exit 1; }

acceptance: $(STAMP)
	$(BIN)/python -m pytest tests/acceptance -m acceptance -s $(ARGS)

clean:
	rm -rf build dist docs/_build docs/api/generated demo_output lightning_logs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks .coverage htmlcov
	find src tests docs examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

clean-venv:
	rm -rf $(VENV)
