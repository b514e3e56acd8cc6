#!/usr/bin/env bash
# Prefect's and MLflow's pages, on this machine only, until Ctrl-C. Called by `make ui`.
set -euo pipefail
cd "$(dirname "$0")/.."
prefect_port=$1 mlflow_port=$2

mkdir -p mlruns
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
trap 'trap - INT TERM EXIT; kill $(jobs -p) 2>/dev/null; wait' INT TERM EXIT

prefect server start --host 127.0.0.1 --port "$prefect_port" --log-level WARNING &
mlflow server --workers 1 --host 127.0.0.1 --port "$mlflow_port" \
    --backend-store-uri "${MLFLOW_TRACKING_URI:-sqlite:///mlruns/mlflow.db}" \
    --artifacts-destination mlruns/artifacts &

cat <<END
Prefect  http://127.0.0.1:$prefect_port
MLflow   http://127.0.0.1:$mlflow_port

Flow runs show up here when they are started with
  PREFECT_API_URL=http://127.0.0.1:$prefect_port/api python -m flows.rebuild
Ctrl-C stops both.
END
wait -n
