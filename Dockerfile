# One image for everything in a cluster: code server, runs, webserver and daemon are the same versions by construction.
#
#   docker build -t thess-agg-dagster .
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
# Both names: newer pip takes what it builds with from the second.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/src/constraints.txt PIP_BUILD_CONSTRAINT=/src/constraints.txt
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# What we depend on first, and without us: this layer, nearly all of the image, stays while only our code changes.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *extras['fleet'], *extras['kubernetes'], *extras['s3'], sep='\n')" > requirements.txt \
    && pip install -r requirements.txt
COPY README.md LICENSE ./
COPY thess_agg_dagster thess_agg_dagster
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# rasterio's wheel brings GDAL with all of its libraries but this one.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin dagster \
    && install -d -o 10001 -g 10001 /opt/dagster/dagster_home
COPY --from=build /opt/venv /opt/venv
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    /opt/venv/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
# Everything that is written at run time goes to /tmp, so the rest can be read-only.
ENV PATH=/opt/venv/bin:$PATH DAGSTER_HOME=/opt/dagster/dagster_home HOME=/tmp TMPDIR=/tmp \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
# By number: Kubernetes cannot tell of a name whether it is root.
USER 10001:10001
EXPOSE 3030
# A code server. No entry point: the Helm chart and the run launcher give whole commands.
CMD ["dagster", "api", "grpc", "-h", "0.0.0.0", "-p", "3030", "-m", "thess_agg_dagster.definitions"]
