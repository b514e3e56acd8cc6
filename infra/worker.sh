#!/usr/bin/env bash
# A Prefect worker for the present checkout: creates the work pool if it is missing, deploys prefect.yaml, then works.
# Needs PREFECT_API_URL and PREFECT_API_AUTH_STRING, and the MLflow and AWS variables of infra/env.example.
set -euo pipefail
pool=${CXR_POOL:-local}

prefect work-pool inspect "$pool" >/dev/null 2>&1 || prefect work-pool create "$pool" --type process
prefect --no-prompt deploy --all
python -m flows.upkeep # ends the runs of a dead worker; of missed runs only the newest runs
exec prefect worker start --pool "$pool"
