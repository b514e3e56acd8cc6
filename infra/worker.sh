#!/usr/bin/env bash
# A Prefect worker for the present checkout: creates the work pool if it is missing, deploys prefect.yaml, then works.
# Needs PREFECT_API_URL and PREFECT_API_AUTH_STRING, and the MLflow and AWS variables of infra/env.example.
set -euo pipefail
export CXR_POOL=${CXR_POOL:-local}

"$(dirname "$(readlink -f "$0")")/deploy.sh"
python -m flows.upkeep # ends the runs of a dead worker; of missed runs only the newest runs
exec prefect worker start --pool "$CXR_POOL"
