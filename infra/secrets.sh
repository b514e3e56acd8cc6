#!/usr/bin/env bash
# Write random passwords for compose.yaml into infra/.env, and the web app's token into infra/.env.app-token, readable by
# you only. Never overwrites either.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
drawn() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

if [ -e .env ] && [ -e .env.app-token ]; then
    echo "error: infra/.env is there already, and a database keeps its first passwords: remove it only with them" >&2
    exit 1
fi
if [ ! -e .env.app-token ]; then
    drawn >.env.app-token.partial
    mv .env.app-token.partial .env.app-token
    echo "infra/.env.app-token is written: the token of the web app; user 1000 of its container must be able to read it"
fi
if [ ! -e .env ]; then
    while IFS='=' read -r name prefix; do
        case $name in '' | '#'*) ;; *) echo "$name=$prefix$(drawn)" ;; esac
    done <env.example >.env.partial
    mv .env.partial .env
    echo "infra/.env is written; keep a copy where your team keeps its secrets"
fi
