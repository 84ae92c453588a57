# The edge server on a CPU, x86-64 or arm64. From the repository's root:
#   docker build -f deploy/docker/edge.Dockerfile -t edgecloud-edge .
# Pin the base by its digest: --build-arg BASE=debian:bookworm-slim@sha256:...
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# The versions are those of Debian's stable release, which gets security fixes only.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Without GGML_NATIVE=OFF llama.cpp is compiled for the processor of this machine, and ends with SIGILL on an older one.
# As it is: AVX2 and FMA on x86-64, any ARMv8 on arm64. A Raspberry Pi 5, or newer:
#   --build-arg CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16"
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF"
WORKDIR /build
COPY requirements/edge.lock requirements/edge.lock
RUN python3 -m venv /opt/venv \
    && CMAKE_ARGS="${CMAKE_ARGS}" /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes \
        -r requirements/edge.lock

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --no-log-init --uid 10001 --user-group --shell /usr/sbin/nologin --create-home --home-dir /var/lib/edgecloud edgecloud
COPY --from=build /opt/venv /opt/venv
WORKDIR /opt/edgecloud
COPY pyproject.toml start_edge.py ./
COPY common common/
COPY cli cli/
COPY edgecloud edgecloud/
COPY config config/
COPY edge edge/
COPY models/demo-edge.gguf models/demo-router.json models/
RUN /opt/venv/bin/python -m compileall -q . \
    && install -d -o edgecloud -g edgecloud /var/lib/edgecloud/kv /var/lib/edgecloud/hub
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/edgecloud/hub \
    EDGECLOUD_EDGE__SERVER__HOST=0.0.0.0 \
    EDGECLOUD_EDGE__KV_CACHE__DIRECTORY=/var/lib/edgecloud/kv
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["python", "start_edge.py"]
