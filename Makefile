# Every target builds what it needs; `make` alone lists them. Everything else runs by `./run NAME`.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup tools run test test-containers fuzz check lint audit sbom data serve app doctor bench docs clean

DATA ?=
WEIGHTS ?=
PROTOCOL ?=
PROFILE ?=
FOR ?=
TORCH ?=
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
PORT ?= 8000
MINUTES ?= 10
FIRST ?= 0

# A value as one word for the shell, whatever it holds.
quoted = '$(subst ','\'',$(1))'

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

setup: ## build .venv from uv.lock, if it is not up to date [FOR=use|develop|cluster|predict] [TORCH=cpu|cuda]
	@CXR_SETUP_FOR="$(FOR)" CXR_SETUP_TORCH="$(TORCH)" infra/setup.sh

tools:
	@CXR_SETUP_FOR=develop infra/setup.sh

run: ## the whole loop, on the sample or on DATA=folder [WEIGHTS=file] [PROTOCOL=paper|patient|official|cv|block] [PROFILE=hospital]
	@./run infra/run.sh $(call quoted,$(DATA)) $(call quoted,$(WEIGHTS)) $(call quoted,$(PROTOCOL)) $(call quoted,$(PROFILE))

# A worker a core, and one thread each: two that fight over the cores are many times slower than either alone.
test: tools ## the test suite, with the coverage floor
	OMP_NUM_THREADS=1 ./run pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15 --cov --cov-report=term

test-containers: tools ## infra/compose.yaml in podman's containers: as root, 35 GB of disk, half an hour (docs/containers.md)
	CXR_CONTAINERS=$${CXR_CONTAINERS:-1} OMP_NUM_THREADS=1 ./run pytest -v -s tests/containers

fuzz: tools ## damaged inputs to all that reads a stranger's bytes [MINUTES=10] [FIRST=0: number of the first input]
	./run tests.support.fuzz --minutes "$(MINUTES)" --first "$(FIRST)"

check: lint ## lint, and the tests of architecture and documents
	./run pytest tests/test_architecture.py tests/test_docs.py

lint: tools ## ruff, mypy, import contracts, secret scan, licences, documentation site
	./run ruff check .
	./run ruff format --check .
	./run mypy
	./run lint-imports
	./run infra/secret-scan.sh
	./run python -m infra.licences check
	./run infra/docs/build.sh

audit: tools ## secrets in tracked files, known weaknesses of the locked packages (asks PyPI)
	@./run infra/audit.sh

sbom: tools ## sbom.json: every locked package with its licence, in CycloneDX 1.5
	./run python -m infra.licences sbom sbom.json

data: ## download both real sets from their public homes
	@./run data

serve: ## Prefect, worker, schedules and MLflow on this machine until Ctrl-C [PREFECT_PORT=4200] [MLFLOW_PORT=5000]
	@./run flows.serve --prefect-port "$(PREFECT_PORT)" --mlflow-port "$(MLFLOW_PORT)"

app: ## the web app on this machine until Ctrl-C: drop images, see what the champion says [PORT=8000]
	@./run app --port "$(PORT)"

doctor: ## check all that running this needs, and say what to do about what is not well
	@./run flows.doctor

bench: tools ## measurements that need no model, on DATA=folder of images of their original size (docs/benchmarks.md)
	./run benchmarks.preprocessing $(call quoted,$(DATA))
	./run benchmarks.training $(call quoted,$(DATA))
	./run benchmarks.tracking_files
	./run benchmarks.flow_overhead

docs: ## build the documentation site into site/, with offline search
	@./run infra/docs/build.sh

clean: ## remove what `make run` can build again; keeps downloads, mlruns and DVC's cache
	rm -rf reports models data/raw data/split data/images data/unpacked .checkpoints .runs dvc_plots site docs/reference
	git worktree prune
