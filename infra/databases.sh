#!/usr/bin/env bash
# Create a database with its own owner for each service in PostgreSQL 14 or newer; running it again changes nothing but
# the passwords. compose.yaml runs it when the database is first created; elsewhere:
#   PGHOST=... PGPASSWORD=... POSTGRES_USER=... infra/databases.sh
# The user is a superuser, or an administrator who may create roles and databases, as on RDS.
# An owner has access to its own databases only. Passwords come from the environment, never from the command line.
set -euo pipefail
: "${MLFLOW_DB_PASSWORD:?a password for the role mlflow}" "${PREFECT_DB_PASSWORD:?a password for the role prefect}"
export MLFLOW_DB_PASSWORD PREFECT_DB_PASSWORD

psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
SET client_min_messages = warning; -- what is there already is not worth a line
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv prefect_password PREFECT_DB_PASSWORD
SELECT format('CREATE ROLE %I', name) FROM unnest(ARRAY['mlflow', 'prefect']) AS name
    WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
ALTER ROLE mlflow LOGIN NOCREATEDB NOCREATEROLE PASSWORD :'mlflow_password';
ALTER ROLE prefect LOGIN NOCREATEDB NOCREATEROLE PASSWORD :'prefect_password';
-- An administrator who is no superuser can only give a database to an owner whose role it has.
SELECT format('GRANT mlflow, prefect TO %I', rolname) FROM pg_roles WHERE rolname = current_user AND NOT rolsuper \gexec
-- UTF-8 whatever the server's own encoding is: a server set up without a locale has none, and MLflow's names need it.
SELECT format('CREATE DATABASE %I OWNER %I ENCODING ''UTF8'' TEMPLATE template0', name, owner)
    FROM (VALUES ('mlflow', 'mlflow'), ('mlflow_auth', 'mlflow'), ('prefect', 'prefect')) AS wanted (name, owner)
    WHERE name NOT IN (SELECT datname FROM pg_database) \gexec
REVOKE CONNECT ON DATABASE mlflow, mlflow_auth, prefect FROM PUBLIC;
-- Prefect's migrations ask for these; a database's owner may not make pg_trgm in every distribution.
\connect prefect
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_trgm;
SQL
