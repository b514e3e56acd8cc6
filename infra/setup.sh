#!/usr/bin/env bash
# Build .venv from uv.lock, and write .env: where MLflow and Prefect keep what this project records.
# Needs python3 of 3.11 or newer; takes uv from PATH or makes a private one. Does nothing when both are up to date.
# `--print-uv` only prints the path of uv.
set -euo pipefail
cd "$(dirname "$0")/.."

UV_VERSION=0.13.9
OLDEST_PYTHON="3, 11"

# Prefect reads .env by itself, MLflow with `mlflow --env-file .env`, ./run and infra/environment.sh for every command.
write_env() {
    local first="# The stores of $PWD, for ./run and for Prefect. Yours to edit: a team's addresses go here (infra/README.md)."
    if [ -f .env ]; then
        local before
        before=$(sed -n '1s/^# The stores of \(.*\), for \.\/run and.*/\1/p' .env)
        if [ -z "$before" ] || [ "$before" = "$PWD" ]; then
            return
        fi
        local text
        text=$(<.env) # the folder was moved or copied
        printf '%s\n' "${text//"$before"/"$PWD"}" >.env
        return
    fi
    cat >.env <<END
$first
PREFECT_HOME=$PWD/.prefect
PREFECT_PROFILES_PATH=$PWD/.prefect/profiles.toml
CXR_MLRUNS=$PWD/mlruns
MLFLOW_TRACKING_URI=sqlite:///$PWD/mlruns/mlflow.db
END
}
fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    local name
    for name in python3.12 python3.11 python3 python; do
        if command -v "$name" >/dev/null &&
            "$name" -c "import sys; sys.exit(sys.version_info < ($OLDEST_PYTHON))" 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "python3 of 3.11 or newer is needed, and none is on PATH"
}

find_uv() {
    if command -v uv; then
        return
    fi
    local tools=.tools/uv python
    if [ -x "$tools/bin/uv" ] && [ "$("$tools/bin/uv" --version | cut -d' ' -f2)" = "$UV_VERSION" ]; then
        echo "$tools/bin/uv"
        return
    fi
    python=$(find_python)
    echo "setting up uv $UV_VERSION in $tools" >&2
    rm -rf "$tools"
    # Debian's python3 may lack ensurepip (python3-venv); its pip, where there is one, does as well.
    if "$python" -m venv "$tools" >/dev/null 2>&1; then
        "$tools/bin/python" -m pip install --quiet "uv==$UV_VERSION" >&2
    elif rm -rf "$tools" && "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --quiet --target "$tools" "uv==$UV_VERSION" >&2
    else
        fail "$python has neither venv nor pip: install python3-venv (apt-get install python3-venv) or uv, then run again"
    fi
    echo "$tools/bin/uv"
}

if [ "${1:-}" = --print-uv ]; then
    find_uv
    exit
fi

write_env

stamp=.venv/.built-from
wanted=$(sha256sum <uv.lock | cut -d' ' -f1) # it holds what pyproject.toml asks for, too
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

uv=$(find_uv)
echo "building .venv from uv.lock" >&2
unset VIRTUAL_ENV
"$uv" sync --frozen
echo "$wanted" >"$stamp"
