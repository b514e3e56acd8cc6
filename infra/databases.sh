#!/usr/bin/env bash
# Create a database with its own owner for each service; run once against an empty PostgreSQL 14 or newer.
# compose.yaml runs it when the database is first created; elsewhere: PGHOST=... POSTGRES_USER=... infra/databases.sh
# An owner has access to its own databases only. Passwords come from the environment, never from the command line.
set -euo pipefail
: "${MLFLOW_DB_PASSWORD:?a password for the role mlflow}" "${PREFECT_DB_PASSWORD:?a password for the role prefect}"
export MLFLOW_DB_PASSWORD PREFECT_DB_PASSWORD

psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv prefect_password PREFECT_DB_PASSWORD
CREATE ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'mlflow_password';
CREATE ROLE prefect LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'prefect_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE DATABASE prefect OWNER prefect;
REVOKE CONNECT ON DATABASE mlflow, mlflow_auth, prefect FROM PUBLIC;
-- Prefect's migrations ask for these; a database's owner may not make pg_trgm in every distribution.
\connect prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;
SQL
