#!/usr/bin/env bash
# Build .venv from uv.lock, and write .env: where MLflow and Prefect keep what this project records.
# Needs python3 of 3.11 or newer; takes uv from PATH or makes a private one. Does nothing when both are up to date.
# `--print-uv` only prints the path of uv.
#
# CXR_SETUP_FOR    use (all commands), develop (and the tests' tools), cluster (all commands, and Ray), predict (predict,
#                  app and pacs with the exported network: no torch). Not set: as .venv was built before, else use.
# CXR_SETUP_TORCH  cuda or cpu: the build of torch. Not set: as before, else what the machine has. Both have the version
#                  of uv.lock; the lock's own build, with its digest, is cuda, and serves a machine without a GPU, too.
set -euo pipefail
cd "$(dirname "$0")/.."

UV_VERSION=0.13.9
OLDEST_PYTHON="3, 11"
CPU_INDEX=${CXR_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

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
    for name in python3.13 python3.12 python3.11 python3 python; do
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

# The CPU build is 4 GB smaller and not on PyPI; other systems than this have no other build than that of the lock.
torch_of_machine() {
    if [ "$(uname -sm)" = "Linux x86_64" ] && ! [ -e /dev/nvidiactl ] && ! command -v nvidia-smi >/dev/null; then
        echo cpu
    else
        echo cuda
    fi
}

version_of() {
    sed -n "/^name = \"$1\"\$/{n;s/^version = \"\(.*\)\"/\1/p;q;}" uv.lock
}

# Everything of the lock but torch and CUDA, then torch of the same version; --no-deps: its requirements are there.
sync_with_cpu_torch() {
    local skipped name
    skipped=(--no-install-package torch --no-install-package torchvision)
    for name in $(sed -n 's/^name = "\(nvidia-.*\|cuda-.*\|triton\)"$/\1/p' uv.lock); do
        skipped+=(--no-install-package "$name")
    done
    "$uv" sync --frozen "${groups[@]}" "${skipped[@]}" &&
        "$uv" pip install --quiet --python .venv/bin/python --no-deps --index "$CPU_INDEX" \
            "torch==$(version_of torch)+cpu" "torchvision==$(version_of torchvision)+cpu"
}

stamp=.venv/.built-from
lock=$(sha256sum <uv.lock | cut -d' ' -f1) # it holds what pyproject.toml asks for, too
built='' built_for='' built_torch=''
[ -f "$stamp" ] && read -r built built_for built_torch <"$stamp"
if [ -n "$built" ]; then # up to 0.5.0 the stamp was the digest alone
    built_for=${built_for:-develop} built_torch=${built_torch:-cuda}
fi
purpose=${CXR_SETUP_FOR:-${built_for:-use}}
torch=${CXR_SETUP_TORCH:-${built_torch:-$(torch_of_machine)}}
if [ -x .venv/bin/python ] && [ "$built $built_for $built_torch" = "$lock $purpose $torch" ]; then
    exit 0
fi
case $purpose in
    use) groups=(--no-dev) ;;
    develop) groups=(--dev) ;;
    cluster) groups=(--no-dev --group cluster) ;;
    predict) groups=(--only-group predict) torch=cuda ;; # neither
    *) fail "CXR_SETUP_FOR is use, develop, cluster or predict, not $purpose" ;;
esac
[[ $torch =~ ^(cuda|cpu)$ ]] || fail "CXR_SETUP_TORCH is cuda or cpu, not $torch"

uv=$(find_uv)
echo "building .venv from uv.lock, to $purpose" >&2
unset VIRTUAL_ENV
# Where Python may not keep compiled code, as in many images of machines, each of the many processes of a run would
# compile all that it imports.
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || export UV_COMPILE_BYTECODE=1
if [ "$torch" = cpu ] && ! sync_with_cpu_torch; then
    [ -z "${CXR_SETUP_TORCH:-}" ] || fail "the CPU build of torch could not be installed from $CPU_INDEX, see above"
    echo "$CPU_INDEX cannot be used from here: taking the CUDA build from PyPI, which is 4 GB larger" >&2
    torch=cuda
fi
[ "$torch" = cpu ] || "$uv" sync --frozen "${groups[@]}"
echo "$lock $purpose $torch" >"$stamp"
