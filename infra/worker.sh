#!/usr/bin/env bash
# A Prefect worker in the checkout it stands in: makes the work pool where it is missing, deploys prefect.yaml, works.
# Wants PREFECT_API_URL and PREFECT_API_AUTH_STRING, and the MLflow and AWS variables of infra/env.example.
set -euo pipefail
pool=${CXR_POOL:-local}

prefect work-pool inspect "$pool" >/dev/null 2>&1 || prefect work-pool create "$pool" --type process
prefect --no-prompt deploy --all
python -m flows.upkeep # what a dead worker left ends; of missed runs the newest is the catch-up
exec prefect worker start --pool "$pool"
