#!/usr/bin/env bash
# Secrets in tracked files, then known weaknesses of every package that uv.lock pins. Called by `make audit`.
# The second part asks PyPI's advisories: without them it fails and says so, because then nothing was checked.
# Accepted weaknesses are listed in infra/accepted-weaknesses.txt: the id, then the reason.
set -euo pipefail
cd "$(dirname "$0")/.."

infra/secret-scan.sh

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
python - >"$pins" <<'END'
import tomllib
from pathlib import Path

for package in tomllib.loads(Path("uv.lock").read_text())["package"]:
    if "registry" in package["source"]:
        print(f"{package['name']}=={package['version']}")
END

accepted=()
while read -r id _; do
    case $id in '' | '#'*) ;; *) accepted+=(--ignore-vuln "$id") ;; esac
done <infra/accepted-weaknesses.txt

echo "asking for known weaknesses of $(wc -l <"$pins") packages"
if ! pip-audit --requirement "$pins" --no-deps --disable-pip --strict --progress-spinner off "${accepted[@]}"; then
    echo "error: a package has a known weakness (raise it in uv.lock, or accept it with a reason), or could not be" \
        "looked up: then nothing was audited" >&2
    exit 1
fi
