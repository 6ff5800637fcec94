# The workshop's commands; `make` alone lists them. Written for GNU make 3.81 (macOS) and newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODELS := artifacts/retriever/retriever.skops
BENCHMARKS := $(wildcard benchmarks/*.py)
IN_TORCH_LOCK := torch sentence-transformers
# Notebooks start programs by name (ray, redis, curl): ours come first.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
# Several processes: conftest.py says how many, which tests belong together, and which start first.
PYTEST := $(IN_VENV) pytest --numprocesses=auto --dist=loadgroup --no-loadscope-reorder

# Where it is set, as in many containers, each of the hundreds of processes that start here compiles all its imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env artifacts lab test check lint notebooks bench lock clean new-venv

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

env: $(READY)  ## the Python environment, in .venv/

artifacts: $(MODELS)  ## the trained models, in artifacts/

lab: env artifacts  ## JupyterLab at lesson 00; make lab ARGS="--no-browser --port 9999"
	@$(IN_VENV) JUPYTER_CONFIG_PATH="$(CURDIR)/binder/jupyter" \
	  jupyter lab --ServerApp.root_dir="$(CURDIR)" $(ALLOW_ROOT) $(ARGS)

test: lint artifacts  ## every check and test, the solution notebooks included; make test ARGS="tests/api -k health"
	@$(PYTEST) $(ARGS)

check: lint artifacts  ## lint, and the quick tests: conftest.py says which are not
	@$(PYTEST) -m "not ray and not browser and not notebook and not slow" $(ARGS)

lint: env  ## style and types
	@$(IN_VENV) ruff check .
	@$(IN_VENV) ruff format --check .
	@$(IN_VENV) mypy

notebooks: env  ## make notebooks/ and solutions/*.ipynb from their sources
	@$(IN_VENV) python -m workshop.lab.build

bench: env artifacts  ## measure the service
	@for script in $(BENCHMARKS); do echo "$$script"; PYTHONPATH=. $(IN_VENV) python "$$script" $(ARGS) || exit 1; done

lock: env  ## requirements.lock from pyproject.toml; newest versions: make lock ARGS=--upgrade
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links $(patsubst %,--no-emit-package %,$(IN_TORCH_LOCK)) --constraint torch.lock \
	  $(ARGS) pyproject.toml -o requirements.lock

clean:  ## remove everything that these commands made
	rm -rf $(VENV) artifacts build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache \
	  .hypothesis .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# JupyterLab does not start as root, the only user of many containers, unless told to.
ALLOW_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)

$(MODELS): $(READY)
	@echo "Training the models"
	@$(IN_VENV) python -m workshop train
	@touch $@

# uv installs in seconds. pip is the fallback, for instance where only pip is configured for the right index.
# An interrupted update may leave half a package behind: without $(READY), the next run starts from scratch.
$(READY): requirements.lock torch.lock pyproject.toml
	@echo "Installing requirements.lock into $(VENV) (about 2 GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	@trap 'rm -f $(READY); exit 1' HUP INT TERM; \
	{ $(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .; } || \
	{ echo "uv could not install it; trying again with pip, which takes minutes"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements.lock && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .; }
	@binder/install_torch $(BIN)/python
	@echo "$(CURDIR)" > $@

# $(READY) holds the path of the folder that it was made for: an environment that is unfinished, was moved, or has lost
# its Python is made again.
ifneq ($(shell test -x $(BIN)/python && cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): new-venv
endif

# The versioned names are for a system whose python3 is too old. A PYTHON that the user sets is the only candidate.
new-venv:
	@for python in $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  "$$python" -c 'import venv, ensurepip' 2>/dev/null || { bare="$$python"; continue; }; \
	  exec "$$python" -m venv --clear $(VENV); \
	done; \
	if [ -n "$$bare" ]; then \
	  echo "$$bare has no venv module. On Debian and Ubuntu: apt install python3-venv. Then run make again."; \
	else \
	  echo "Python 3.11 or newer is needed, which $(PYTHON) is not. Name one: make env PYTHON=/path/to/python3.11"; \
	fi >&2; \
	exit 1
