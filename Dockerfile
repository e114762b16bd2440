# One image for the nodes of a Ray cluster, for an MLflow server and for single commands.
#
#     docker build -t raydet .                               torch's ordinary wheels, which bring CUDA
#     docker build -t raydet:cpu --build-arg DEVICE=cpu .    wheels without CUDA
#     docker run --rm --shm-size=2g raydet python -m raydet.tune --space gaff_phase2 --recipe demo
#
# The base is pinned by its tag, which says the day. To pin its bytes as well, ask for the digest and build from that:
#
#     docker buildx imagetools inspect debian:bookworm-20250520-slim
#     docker build -t raydet --build-arg BASE=debian:bookworm-20250520-slim@sha256:DIGEST .
ARG BASE=debian:bookworm-20250520-slim

FROM ${BASE} AS base
# ssh and rsync: Ray's launcher brings files and starts workers by them. wget: KubeRay's probes and the health check.
# Versions are not pinned: Debian keeps only the newest, so that a pinned one is gone with the next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get upgrade -y \
    && apt-get install -y --no-install-recommends ca-certificates openssh-client python3 rsync wget \
    && rm -rf /var/lib/apt/lists/*

FROM base AS dependencies
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/raydet
RUN python3 -m venv .venv \
    && .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir uv==0.13.9
# Compiled files are written here, once: the user of the image may not, and every Ray worker imports them.
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
COPY pyproject.toml cluster/constraints.txt ./
# gpu or cpu. The wheels without CUDA have no hashes in constraints.txt, so only their versions are checked;
# TORCH_SOURCE is the option by which uv finds them: --index=URL or --find-links=URL where they are mirrored.
ARG DEVICE=gpu
ARG TORCH_SOURCE=--torch-backend=cpu
RUN --mount=type=cache,target=/root/.cache/uv \
    case "${DEVICE}" in \
        gpu) ;; \
        cpu) .venv/bin/uv pip install --python .venv/bin/python --constraints constraints.txt \
                 --no-deps --no-verify-hashes "${TORCH_SOURCE}" torch torchvision ;; \
        *) echo "DEVICE must be gpu or cpu, not '${DEVICE}'" >&2; exit 2 ;; \
    esac \
    && .venv/bin/uv pip install --python .venv/bin/python --constraints constraints.txt \
           --requirements pyproject.toml --extra cluster \
    && if [ "${DEVICE}" = cpu ]; then \
           .venv/bin/python -c "import sys, torch; sys.exit(torch.version.cuda and 'TORCH_SOURCE has only CUDA wheels')"; \
       fi

FROM base
# The user's number is written out below, for Kubernetes' runAsNonRoot. A login shell, which Ray's launcher and KubeRay
# start, forgets the PATH of the image.
RUN useradd --create-home --uid 1000 --shell /bin/bash raydet \
    && echo "PATH=/opt/raydet/.venv/bin:\$PATH" > /etc/profile.d/raydet.sh
WORKDIR /opt/raydet
# The large layer comes first: other code leaves it as it is.
COPY --from=dependencies /opt/raydet/.venv .venv
COPY pyproject.toml README.md ./
COPY cluster/constraints.txt cluster/health.sh cluster/
COPY raydet raydet
COPY tune_spaces tune_spaces
RUN --mount=type=cache,target=/root/.cache/uv \
    UV_LINK_MODE=copy .venv/bin/uv pip install --python .venv/bin/python --build-constraints cluster/constraints.txt \
        --no-deps -e . \
    && .venv/bin/python -m compileall -q raydet tune_spaces

# `ray job stop` ends a job after 3 s, while trials take up to 20 s to save.
ENV PATH=/opt/raydet/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_JOB_STOP_WAIT_TIME_S=40 \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /home/raydet
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 CMD ["sh", "/opt/raydet/cluster/health.sh"]
CMD ["raydet", "--help"]
