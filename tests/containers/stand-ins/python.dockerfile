FROM localhost/cxr-base:bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends \
        python3 python3-venv python3-pip python-is-python3 git procps && rm -rf /var/lib/apt/lists/*
