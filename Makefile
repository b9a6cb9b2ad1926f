# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
SITE := _build/html
PORT ?= 8000
export OMP_WAIT_POLICY := passive
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# In the C locale Python would not find a folder that has an accent in its name.
export PYTHONUTF8 := 1
# Pages look alike whatever the user's own settings, and where the home cannot be written to.
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib
export IPYTHONDIR := $(CURDIR)/.venv/ipython

.PHONY: help book test serve lab notebooks check browser mutants clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer: name one, as in make PYTHON=python3.12 book")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -c 'import matplotlib.font_manager'  # finds the fonts once: no page has to
	@touch $@

.venv/lab: requirements-lab.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-lab.txt
	@touch $@

.venv/mutants: requirements-mutants.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-mutants.txt
	@touch $@

# Sphinx checks links only in pages that it reads again, so it reads all; outputs are cached.
book: .venv/installed  ## build the book, every notebook executed
	@rm -rf $(SITE) _build/.doctrees
	$(BIN)/jupyter-book build . -W -n --keep-going
	@echo "The book is at $(CURDIR)/$(SITE)/index.html"

test: .venv/installed  ## run the tests, and every notebook against its stored outputs
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --nbval

serve: book  ## build the book and serve it on http://127.0.0.1:8000 (PORT=...)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE) $(PORT)

lab: .venv/lab  ## open the chapters in JupyterLab, with its MyST extension (LAB=... for its options)
	$(BIN)/jupyter lab --config=tools/jupyter_lab_config.py \
		--LabApp.default_url=/lab/tree/lecture11/01-erm-to-minmax.ipynb $(LAB)

notebooks: .venv/installed  ## execute every notebook and store its outputs
	$(BIN)/python tools/notebooks.py

check: .venv/installed  ## lint, types, the notebook pairs, and every link inside the book
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/notebooks.py --check
	@rm -rf _build/dummy _build/.doctrees
	$(BIN)/jupyter-book build . -W -n --keep-going --builder custom --custom-builder dummy

browser: book  ## look at every built page in headless Chromium
	$(BIN)/python -m pytest -m browser tests

mutants: .venv/mutants  ## which changes of MODULE=lib/balls no test notices (MUTANTS=... for options)
	$(BIN)/python tools/mutants.py $(MODULE) $(MUTANTS)

clean:  ## remove what was built; the environment stays
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
