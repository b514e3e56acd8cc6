FROM localhost/cxr-base:bookworm
RUN groupadd --gid 101 nginx && useradd --uid 101 --gid nginx nginx && \
    apt-get update && apt-get install --yes --no-install-recommends nginx-light curl && rm -rf /var/lib/apt/lists/*
