#!/usr/bin/env bash
# MLflow's server with accounts on, every setting from the environment. compose.yaml and the integration tests run it.
#   MLFLOW_BACKEND_STORE_URI      postgresql+pg8000://mlflow:...@host/mlflow
#   MLFLOW_AUTH_DATABASE_URI      postgresql+pg8000://mlflow:...@host/mlflow_auth: accounts and rights
#   MLFLOW_AUTH_ADMIN_USERNAME, MLFLOW_AUTH_ADMIN_PASSWORD   first account; only read while no account exists
#   MLFLOW_FLASK_SERVER_SECRET_KEY   signs forms; the same for every copy of the server
#   MLFLOW_ARTIFACTS_DESTINATION  s3://bucket/prefix; only the server has the bucket's keys, clients need none
#   MLFLOW_HOST, MLFLOW_PORT      127.0.0.1 and 5000 by default
set -euo pipefail
: "${MLFLOW_BACKEND_STORE_URI:?}" "${MLFLOW_AUTH_DATABASE_URI:?}" "${MLFLOW_ARTIFACTS_DESTINATION:?}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"
export MLFLOW_HOST=${MLFLOW_HOST:-127.0.0.1} MLFLOW_PORT=${MLFLOW_PORT:-5000}
# The job runner starts eight processes that nothing here uses.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true

# MLflow reads the accounts' address only from a file. Only its owner may read that file.
umask 077
accounts=$(mktemp -d)
export MLFLOW_AUTH_CONFIG_PATH=$accounts/basic_auth.ini
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<END
[mlflow]
default_permission = READ
database_uri = ${MLFLOW_AUTH_DATABASE_URI//%/%%}
admin_username = ${MLFLOW_AUTH_ADMIN_USERNAME:-admin}
# Without this every request hashes the password again. A changed password is valid at once on the same server.
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
umask 022
exec mlflow server --workers "${MLFLOW_WORKERS:-1}" --app-name basic-auth
