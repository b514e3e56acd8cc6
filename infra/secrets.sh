#!/usr/bin/env bash
# Write random passwords for compose.yaml into infra/.env, readable by you only. Never overwrites that file.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
if [ -e .env ]; then
    echo "error: infra/.env is there already, and a database keeps its first passwords: remove it only with them" >&2
    exit 1
fi
drawn() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

while IFS='=' read -r name prefix; do
    case $name in '' | '#'*) ;; *) echo "$name=$prefix$(drawn)" ;; esac
done <env.example >.env.partial
mv .env.partial .env
echo "infra/.env is written; keep a copy where your team keeps its secrets"
