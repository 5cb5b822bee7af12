# asyncrl for NVIDIA GPUs: docker build -t asyncrl .
# The nodes of a cluster run this image (docs/clusters.md). Not built where the tests run: it needs a registry of images.
FROM nvidia/cuda:12.9.1-devel-ubuntu24.04

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-dev python3-venv build-essential git \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/asyncrl
ENV PATH=/opt/asyncrl/bin:$PATH RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY asyncrl asyncrl
COPY recipes recipes
ARG VERSION=0.1.0
RUN SETUPTOOLS_SCM_PRETEND_VERSION=$VERSION pip install --no-cache-dir ".[gpu]" s3fs gcsfs
COPY recipes /asyncrl/recipes
WORKDIR /asyncrl

CMD ["asyncrl", "doctor"]
