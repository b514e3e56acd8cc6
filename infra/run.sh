#!/usr/bin/env bash
# The whole pipeline: from raw images to a promoted champion and one prediction by it. Called by `make run`.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 weights=$2 protocol=$3 profile=$4

settings=()
if [ -n "$data" ]; then
    protocol=${protocol:-patient}
    settings+=(--profile profiles/real.yaml --data "$data")
fi
[ -n "$profile" ] && settings+=(--profile "profiles/$profile.yaml")
if [ -n "$protocol" ]; then
    [ -f "profiles/$protocol.yaml" ] && settings+=(--profile "profiles/$protocol.yaml")
    settings+=(--set "split.protocol=$protocol")
fi
[ -n "$weights" ] && settings+=(--weights "$weights")
if [ ${#settings[@]} -gt 0 ]; then
    python -m tasks.configure "${settings[@]}"
fi

# Where a new environment holds no compiled packages yet, those of later steps are compiled beside the first steps, which
# leave a core idle.
if [ -z "${PYTHONDONTWRITEBYTECODE:-}" ]; then
    python -c 'import great_expectations, cxr.models.backbones, mlflow, sklearn.metrics, matplotlib.pyplot, openvino, sympy' \
        </dev/null >/dev/null 2>&1 &
fi

python -m dvc repro
python -m tasks.register # if DVC took that stage from its cache, the alias may still be on another model
python -m tasks.reevaluate || [ $? -eq 11 ] # the gate decides about a champion that cannot be compared

code=0
overlay=""
python -m tasks.promote || code=$?
promoted=$code

if [ "$promoted" -eq 0 ]; then
    echo
    IFS=$'\t' read -r image label < <(python -m tasks.unpack data/unpacked --split test --first 1 --labels)
    echo "One image of the test set, which the champion has not seen in training. Its true label: $label"
    python -m tasks.predict --overlay reports/overlays "$image" || code=$?
    overlay="Where it looked  $PWD/reports/overlays/$(basename "$image").overlay.png"
fi

cat <<END

${overlay:+$overlay
}Report           $PWD/reports/report.html
Data Docs        $PWD/reports/data_docs/index.html
Promotion        $PWD/reports/promotion.json
Prefect, MLflow pages: make serve
END
if [ "$promoted" -eq 11 ]; then
    echo "The gate holds the new model (reasons above): look, then \`python -m tasks.promote --approve-held\`." >&2
elif [ "$promoted" -ne 0 ]; then
    echo "The new model was not promoted (reasons above); whatever was champion stays champion." >&2
fi
exit "$code"
