# Every target builds what it needs; `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test check audit data serve app doctor bench clean

DATA ?=
WEIGHTS ?=
PROTOCOL ?=
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
PORT ?= 8000

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION := false
export PREFECT_SERVER_ANALYTICS_ENABLED := false

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

setup: ## build .venv from uv.lock; does nothing when it is up to date
	@infra/setup.sh

run: setup ## the whole loop, on the sample or on DATA=folder [WEIGHTS=file] [PROTOCOL=paper|patient|official|cv]
	@infra/run.sh "$(DATA)" "$(WEIGHTS)" "$(PROTOCOL)"

# A worker a core, and one thread each: two that fight over the cores are many times slower than either alone.
test: setup ## the test suite, with the coverage floor
	OMP_NUM_THREADS=1 pytest -n auto --maxprocesses 4 --dist loadfile --durations 15 --cov --cov-report=term

check: setup ## ruff, mypy, import contracts, architecture tests, secret scan
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	pytest tests/test_architecture.py
	infra/secret-scan.sh

audit: setup ## secrets in tracked files, known weaknesses of the locked packages (asks PyPI)
	@infra/audit.sh

data: setup ## download both real sets from their public homes
	@python -m tasks.data

serve: setup ## Prefect, worker, schedules and MLflow on this machine until Ctrl-C [PREFECT_PORT=4200] [MLFLOW_PORT=5000]
	@python -m flows.serve --prefect-port "$(PREFECT_PORT)" --mlflow-port "$(MLFLOW_PORT)"

app: setup ## the web app on this machine until Ctrl-C: drop images, see what the champion says [PORT=8000]
	@python -m tasks.app --port "$(PORT)"

doctor: setup ## check all that running this needs, and say what to do about what is not well
	@python -m flows.doctor

bench: setup ## measurements that need no model, on DATA=folder of images of their original size (docs/benchmarks.md)
	python -m benchmarks.preprocessing "$(DATA)"
	python -m benchmarks.training "$(DATA)"
	python -m benchmarks.tracking_files
	python -m benchmarks.flow_overhead

clean: ## remove what `make run` can build again; keeps downloads, mlruns and DVC's cache
	rm -rf reports models data/raw data/split data/images data/unpacked .checkpoints .runs dvc_plots
	git worktree prune
