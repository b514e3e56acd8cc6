FROM docker.io/library/python:3.11.13-bookworm AS package
RUN pip install --quiet --target /package uv==0.13.9

FROM scratch
COPY --from=package /package/bin/uv /uv
