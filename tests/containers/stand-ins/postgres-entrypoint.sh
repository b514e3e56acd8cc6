#!/usr/bin/env bash
# What the published image's entry point does with the variables that compose.yaml sets: an empty volume becomes a
# database, in which the scripts of /docker-entrypoint-initdb.d run before anybody else can connect.
set -euo pipefail
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # shellcheck disable=SC2086 # several options
    initdb --username postgres --pwfile <(printf '%s\n' "$POSTGRES_PASSWORD") ${POSTGRES_INITDB_ARGS:-}
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl --wait -o "-c listen_addresses=''" start
    for script in /docker-entrypoint-initdb.d/*.sh; do
        bash "$script"
    done
    pg_ctl --wait --mode fast stop
fi
exec "$@" -c listen_addresses='*'
