#!/usr/bin/env bash
# Run a command; where a variable NAME_FILE names the file of a secret (cxr/common/secret_files.py), NAME holds it then.
set -euo pipefail
if [[ $(compgen -e) == *_FILE* ]]; then
    project=$(dirname "$(readlink -f "$0")")/..
    exec python -c 'import runpy, sys; sys.path[0] = sys.argv.pop(1); runpy.run_module("cxr.common.secret_files", run_name="__main__")' \
        "$project" "$@"
fi
exec "$@"
