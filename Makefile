# Every command of the project. `make` alone lists them; each sets up the environment first if that is needed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV   ?= .venv
THIRD  ?= .venv-third-party
READY  := $(VENV)/.ready
BIN    := $(VENV)/bin
LAUNCH := scripts/launch
PYTHON ?= $(shell command -v python3.11 || command -v python3)
OPTIONS ?=

# Python prints at once and the kernels of notebooks come from this environment, not from the user's home.
export PYTHONUNBUFFERED := 1
export JUPYTER_PREFER_ENV_PATH := 1
export PYTEST_DISABLE_PLUGIN_AUTOLOAD := 1

.PHONY: help setup demo test lint lab notebooks docs browser workshop gpu-check third-party benchmarks evidence networks clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with the pinned packages (about a minute, plus the download of torch)

# The pip list of environment.yml is the one list of packages; constraints.txt holds their exact versions.
$(READY): environment.yml constraints.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; say which with: make setup PYTHON=/path/to/python3.11"; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	sed -n '/^  - pip:/,$$ s/^      - //p' environment.yml | PIP_DISABLE_PIP_VERSION_CHECK=1 xargs "$(BIN)/python" -m pip install --quiet
	@touch "$(READY)"

demo: $(READY) ## train, analyse and write runs/demo/report.html (under 6 minutes on 2 cores)
	@$(LAUNCH) "$(BIN)/python" -m toolkit demo $(OPTIONS)

test: lint ## lint, types, and the unit, contract and golden tests (under 15 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(LAUNCH) "$(BIN)/python" -m pytest -q -p xdist -n 2 tests/unit tests/contract tests/golden tests/notebooks $(OPTIONS)

lint: $(READY) ## ruff (rules and format) and mypy
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

lab: $(READY) ## JupyterLab on the notebooks
	$(LAUNCH) "$(BIN)/python" -m jupyterlab --ServerApp.root_dir=notebooks --LabApp.news_url=None \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate $(OPTIONS)

notebooks: $(READY) ## run every notebook from top to bottom in its quick form; outputs go to build/notebooks
	rm -rf build/notebooks && mkdir -p build && cp -r notebooks build/notebooks
	FAST=1 $(LAUNCH) "$(BIN)/python" -m pytest -q -p nbmake.pytest_plugin --nbmake --overwrite --nbmake-timeout=900 build/notebooks $(OPTIONS)

docs: $(READY) ## build the site into build/site, with the notebooks as `make notebooks` last executed them
	"$(BIN)/python" -m sphinx -q -W --keep-going -b html docs build/site $(OPTIONS)
	@echo "build/site/index.html"

workshop: $(READY) ## write dist/workshop: the learners' and the instructor's notebooks; they need no network connection
	@$(LAUNCH) "$(BIN)/python" -m toolkit workshop --out dist/workshop --notebooks notebooks $(OPTIONS)

browser: $(READY) ## the explorers in a real JupyterLab and a headless chromium (needs: apt-get install -y chromium)
	OMP_NUM_THREADS=1 $(LAUNCH) "$(BIN)/python" -m pytest -q tests/browser $(OPTIONS)

gpu-check: $(READY) ## train and extract on CUDA in fp32 and bf16 and compare with the CPU
	@$(LAUNCH) "$(BIN)/python" -m toolkit gpu-check $(OPTIONS)

# torchvision has no build for the CPU torch that is pinned: a stand-in that can only be imported meets the requirement.
third-party: $(READY) ## networks of smp, transformers, timm and nnU-Net, trainers and loggers of others, in .venv-third-party (about 400 MB more)
	test -d "$(THIRD)" || "$(PYTHON)" -m venv "$(THIRD)"
	"$(THIRD)/bin/python" -c 'import pathlib, site, sys; pathlib.Path(site.getsitepackages()[0], "base.pth").write_text("import site; site.addsitedir(%r)" % sys.argv[1])' \
	  "$$("$(BIN)/python" -c 'import site; print(site.getsitepackages()[0])')"
	"$(BIN)/python" scripts/torchvision_stub.py "$(THIRD)/torchvision-stub"
	"$(THIRD)/bin/python" -m pip install --quiet --no-deps "$(THIRD)/torchvision-stub"
	grep -v '^importlib_metadata=' constraints.txt > "$(THIRD)/constraints.txt"  # MLflow needs one below 10, or pip takes a release of 2022
	"$(THIRD)/bin/python" -m pip install --quiet -c "$(THIRD)/constraints.txt" nnunetv2==2.8.1 segmentation_models_pytorch transformers timm \
	  pytorch-ignite accelerate wandb 'mlflow-skinny>=3' sqlalchemy alembic
	"$(THIRD)/bin/python" -m pytest -q tests/unit/integrations/test_loggers.py tests/unit/training/test_how_to_extend.py
	$(LAUNCH) "$(THIRD)/bin/python" benchmarks/third_party.py $(OPTIONS)

benchmarks: $(READY) ## ratios against other libraries, written to benchmarks/results/
	$(LAUNCH) "$(BIN)/python" benchmarks/run.py $(OPTIONS)

evidence: $(READY) ## train and measure what the claims need, then write docs/evidence.md; goes on after any kill (STUDY=selfreg JOBS=2)
	OMP_NUM_THREADS=1 $(LAUNCH) "$(BIN)/python" -m evidence.run $(STUDY) --jobs $(or $(JOBS),2) $(OPTIONS)
	"$(BIN)/python" -m evidence.page

networks: $(READY) ## write evidence/networks, and what exceeds 40 MB to runs/networks, from the trainings of `make evidence`
	"$(BIN)/python" -m evidence.networks $(OPTIONS)

clean: ## remove caches (never runs, data or the environment)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist ./*.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
