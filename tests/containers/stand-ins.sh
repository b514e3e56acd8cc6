#!/usr/bin/env bash
# Build the published images that infra/ names, under the same tags, from Debian's and Python's packages: for machines
# that reach no image registry. Where each differs from the published image is in docs/containers.md.
# Needs root, podman and debootstrap. An image that is there already is not built again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
SUITE=bookworm
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

missing() {
    ! podman image exists "$1"
}

# The certificates of this machine: its network may have an authority of its own.
make_base() {
    local root
    root=$(mktemp -d)
    debootstrap --variant=minbase --include=ca-certificates "$SUITE" "$root" "$MIRROR" >/dev/null
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    tar --create --one-file-system --directory "$root" . | podman import --quiet \
        --change "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt" - localhost/cxr-base:$SUITE >/dev/null
    rm -rf "$root"
}

build() { # tag, Dockerfile of the folder stand-ins
    if missing "$1"; then
        echo "building a stand-in for $1" >&2
        podman build --quiet --layers=false --tag "$1" --file "$here/stand-ins/$2" "$here/stand-ins" >/dev/null
    fi
}

if missing "localhost/cxr-base:$SUITE"; then
    make_base
fi
build docker.io/library/python:3.11.13-bookworm python.dockerfile
build ghcr.io/astral-sh/uv:0.13.9 uv.dockerfile
build docker.io/library/postgres:17.6-bookworm postgres.dockerfile
build docker.io/chrislusf/seaweedfs:4.48 seaweedfs.dockerfile
build docker.io/orthancteam/orthanc:25.2.0 orthanc.dockerfile
build docker.io/library/nginx:1.28.0-alpine nginx.dockerfile
