#!/usr/bin/env bash
# Build the documentation site into site/: reference pages from the code, then MkDocs, where a warning is an error.
# MkDocs has an environment of its own, .tools/docs, from the group `docs` of uv.lock. Called by `make docs`.
set -euo pipefail
cd "$(dirname "$0")/../.."

uv=$(infra/setup.sh --print-uv)
UV_PROJECT_ENVIRONMENT=.tools/docs "$uv" sync --frozen --quiet --only-group docs

python -m infra.docs.reference docs/reference
NO_MKDOCS_2_WARNING=true .tools/docs/bin/mkdocs build --quiet --strict

if grep --recursive --include='*.html' --extended-regexp --line-number \
    '<(script|img|iframe)[^>]+src="?https?:|<link[^>]+rel="?(stylesheet|preload|preconnect)[^>]+https?:' site; then
    echo "error: the pages above load something from another host; the site must work offline" >&2
    exit 1
fi
echo "site/index.html is built: $(find site -name '*.html' | wc -l) pages"
