FROM localhost/cxr-base:bookworm
RUN groupadd --gid 999 orthanc && useradd --uid 999 --gid orthanc orthanc && \
    apt-get update && apt-get install --yes --no-install-recommends orthanc python3 && rm -rf /var/lib/apt/lists/* && \
    ln -s /usr/sbin/Orthanc /usr/local/bin/Orthanc && \
    install --directory --owner orthanc --group orthanc /var/lib/orthanc/db && chown orthanc:orthanc /var/lib/orthanc
VOLUME /var/lib/orthanc
