# The cloud server on vLLM's own image, for NVIDIA GPUs. From the repository's root:
#   docker build -f deploy/docker/cloud.Dockerfile -t edgecloud-cloud .
# Pin the base by its digest: --build-arg BASE=vllm/vllm-openai:v0.32.0@sha256:...
ARG BASE=vllm/vllm-openai:v0.32.0

FROM ${BASE}
# What vLLM does not bring itself; its own packages stay as its image has them.
COPY requirements/cloud-image.lock /tmp/cloud-image.lock
RUN uv pip install --system --no-cache --no-deps --require-hashes -r /tmp/cloud-image.lock \
    && useradd --no-log-init --uid 10001 --user-group --shell /usr/sbin/nologin --create-home --home-dir /var/lib/edgecloud edgecloud
WORKDIR /opt/edgecloud
COPY pyproject.toml start_cloud.py ./
COPY common common/
COPY cli cli/
COPY edgecloud edgecloud/
COPY config config/
COPY cloud cloud/
COPY models/demo-cloud models/demo-cloud/
RUN python3 -m compileall -q .
# Everything that vLLM, Triton and the hub write goes below the home folder.
ENV HOME=/var/lib/edgecloud \
    HF_HOME=/var/lib/edgecloud/hub \
    PYTHONUNBUFFERED=1 \
    VLLM_NO_USAGE_STATS=1 \
    EDGECLOUD_CLOUD__SERVER__HOST=0.0.0.0
USER 10001:10001
EXPOSE 8081
# The port is open while the engine still loads: /health says that the server runs, /ready that it can answer.
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8081/health', timeout=4)"]
ENTRYPOINT ["python3", "start_cloud.py"]
