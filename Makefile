# make demo    all notebooks, executed, and one page of figures     make help    all targets
VENV    := .venv
PY      := $(VENV)/bin/python
READY   := $(VENV)/.ready
# Two processes of one thread each, also of the kernels and commands that tests start.
PYTEST  := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --durations=15
PROFILE ?= demo
SCENE   ?=
SENSOR  ?=
LAB     ?=
KIT     ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-slow lab gallery kit notebooks exercises bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## run all notebooks; PROFILE=smoke|demo|gpu; SCENE=path.tif SENSOR=sentinel-2-l2a for your own image
	@scene="$(SCENE)"; if [ -n "$$scene" ] && [ ! -e "$$scene" ] && [ -e "$(PWD)/$$scene" ]; then scene="$(PWD)/$$scene"; fi; \
	$(PY) -m clay_lib run --profile "$(PROFILE)" --scene "$$scene" --sensor "$(SENSOR)"

test: $(READY)  ## everything but the slow tests
	$(PYTEST) -m "not slow"

test-slow: $(READY)  ## the slow tests
	$(PYTEST) -m "slow and not alone"
	$(PY) -m pytest -m alone

lab: $(READY)  ## JupyterLab at the first notebook, on this machine only, with its token
	OMP_WAIT_POLICY=PASSIVE JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter:$$JUPYTER_CONFIG_PATH" \
	$(PY) -m jupyterlab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" $(LAB) $(firstword $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb)) notebooks)

gallery: $(READY)  ## the executed notebooks as a static site that opens from disk: papermill_runs/gallery/index.html
	@if command -v npm >/dev/null; then $(PY) -m clay_lib live; else echo "no npm: the gallery is made without its live page"; fi
	$(PY) -m clay_lib gallery

kit: $(READY)  ## a folder for a workshop without a network: KIT="--wheels true --archive true" for packages and a zip
	$(PY) -m clay_lib kit $(KIT)

notebooks: $(READY)  ## run the demo and put its outputs into notebooks/*.ipynb
	$(PY) -m clay_lib run --profile demo
	$(PY) -m clay_lib pair --run papermill_runs/demo

exercises: $(READY)  ## write notebooks/exercises and the strips of notebooks/flow from the notebooks
	$(PY) -m clay_lib exercises

bench: $(READY)  ## timings on this machine
	$(PY) -m clay_lib bench embed,train,onnx,teacher,chips

clean:  ## remove .venv, caches and results
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info lightning_logs
	find clay_lib tests notebooks -name __pycache__ -prune -exec rm -rf {} +
	find papermill_runs -mindepth 1 -maxdepth 1 ! -name profiles ! -name sweeps ! -name '*.md' ! -name 'train.*' -exec rm -rf {} +

# torch first and pinned, so that no later package installs another build.
$(READY): pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "python3 must be 3.11 or newer; found: $$(python3 --version 2>&1). Install one and put it first on PATH." >&2; exit 1; }
	@[ -x $(PY) ] || python3 -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python3 cannot create a virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@
