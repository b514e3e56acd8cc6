# Source this (bash, zsh): programs, stores and settings of this project for the present shell. `./run` does it, too.
#
#   source infra/environment.sh && dvc repro
#
# A variable that is set already keeps its value; then .env of the project decides (infra/setup.sh writes it), then this.
# A line of .env is NAME=value. As for Prefect, which reads it too, `export `, spaces around and quotes around the value
# do not count.

cxr_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)

cxr_default() {
    printenv "$1" >/dev/null || export "$1=$2"
}

if [ -f "$cxr_root/.env" ]; then
    # The last line may lack its end. Not `IFS='=' read -r name value`: it cuts off a `=` at the end, as of a key in base64.
    while IFS=$' \t' read -r cxr_line || [ -n "$cxr_line" ]; do
        case $cxr_line in '#'*) continue ;; *=*) ;; *) continue ;; esac
        cxr_name=${cxr_line%%=*} cxr_value=${cxr_line#*=}
        cxr_name=${cxr_name#export } cxr_value=${cxr_value%$'\r'}
        cxr_name=${cxr_name%"${cxr_name##*[![:blank:]]}"} cxr_value=${cxr_value#"${cxr_value%%[![:blank:]]*}"}
        case $cxr_value in \"*\" | \'*\') cxr_value=${cxr_value#?} cxr_value=${cxr_value%?} ;; esac
        case $cxr_name in
            '' | [0-9]* | *[!A-Za-z0-9_]*) echo "warning: $cxr_root/.env has a line that is no NAME=value; it is left out" >&2 ;;
            *) cxr_default "$cxr_name" "$cxr_value" ;;
        esac
    done <"$cxr_root/.env"
fi

export PATH="$cxr_root/.venv/bin:$cxr_root/.tools/uv/bin:$PATH"
cxr_default CXR_POOL local
cxr_default DO_NOT_TRACK true
cxr_default DVC_NO_ANALYTICS 1
cxr_default GX_ANALYTICS_ENABLED false
cxr_default MLFLOW_DISABLE_TELEMETRY true
cxr_default MLFLOW_ALLOW_PICKLE_DESERIALIZATION false
cxr_default PREFECT_SERVER_ANALYTICS_ENABLED false

# `make serve` leads Prefect's clients to its server as long as it runs; one that was killed could not take that back.
cxr_served=$cxr_root/.prefect/serve.json
if [ -f "$cxr_served" ] && ! ps -p "$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$cxr_served")" >/dev/null 2>&1; then
    rm -f "$cxr_served" "$cxr_root/.prefect/profiles.toml"
fi

unset -f cxr_default
unset cxr_root cxr_line cxr_name cxr_value cxr_served
