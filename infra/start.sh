#!/usr/bin/env bash
# The image's entry point: where the working directory is empty, put the project there that the image was built from;
# then run the command. A checkout that is mounted stays as it is, and so does a folder that nobody may write into.
#   CXR_DVC_REMOTE   s3://bucket/dvc: DVC's remote, from which a run takes what earlier ones made (flows/remote_cache.py)
#   /state           a volume that outlives a run, where there is one: checkpoints and scores
# DVC and the lineage of a model need git, so the project becomes a repository of its own, with one commit on the branch
# `image`. For the lineage CXR_COMMIT then names the commit that the image was built from.
set -euo pipefail
source=${CXR_SOURCE:-/opt/cxr/project} state=${CXR_STATE:-/state}

if [ ! -e dvc.yaml ] && [ -w . ] && [ -d "$source" ]; then
    cp -R "$source/." .
    if [ -d "$state" ]; then # links, not mounts: a mount in here would give its parent folders to root
        mkdir -p "$state/checkpoints" "$state/scores" data
        ln -s "$state/checkpoints" .checkpoints
        ln -s "$state/scores" data/scores
    fi
    git init --quiet --initial-branch=image
    git add --all
    git -c user.name=cxr -c user.email=cxr@localhost commit --quiet --message "The project of the image"
    if [ -n "${CXR_DVC_REMOTE:-}" ]; then
        dvc remote add --quiet --local --default team "$CXR_DVC_REMOTE"
    fi
fi
if [ "$(git symbolic-ref --quiet --short HEAD 2>/dev/null)" = image ]; then
    export CXR_COMMIT=${CXR_IMAGE_COMMIT:-unknown}
fi
exec "$(dirname "$(readlink -f "$0")")/with-secret-files.sh" "$@"
