#!/usr/bin/env bash
# Create the work pool if it is missing, and deploy the prefect.yaml of the working directory to it; run it again after
# a change.
#   CXR_POOL   local: a worker of this machine (infra/worker.sh); kubernetes: a pod a run (infra/kubernetes)
#   CXR_IMAGE  kubernetes: the image of the pods, with your registry before it; cxr of this release by default
# Needs PREFECT_API_URL and PREFECT_API_AUTH_STRING.
set -euo pipefail
export CXR_POOL=${CXR_POOL:-local}

if [ "$CXR_POOL" = kubernetes ]; then
    template=$(mktemp)
    trap 'rm -f "$template"' EXIT
    sed "${CXR_IMAGE:+s|\"cxr:[0-9.]*\"|\"$CXR_IMAGE\"|}" infra/kubernetes/job-template.json >"$template"
    prefect work-pool create "$CXR_POOL" --type kubernetes --base-job-template "$template" --overwrite
else
    prefect work-pool inspect "$CXR_POOL" >/dev/null 2>&1 || prefect work-pool create "$CXR_POOL" --type process
fi
prefect --no-prompt deploy --all
