# Chameleon on TPUs, in a TPU VM or a pod of GKE: `docker build -f docker/tpu.Dockerfile -t chameleon:tpu .` at the root
# of the repository. docs/launch.md says under "Images" how to run it, and what of it was tested.
FROM python:3.12-slim AS command

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# What the package needs, with a package that is still empty: this layer is kept until one of the two files changes.
WORKDIR /opt/chameleon
COPY constraints.txt pyproject.toml ./
RUN mkdir chameleon_jax configs data_pipeline \
    && touch LICENSE README.md chameleon_jax/__init__.py data_pipeline/__init__.py \
    && python -m pip install --constraint constraints.txt ".[gcs,released,serve,tpu]"

# The package itself.
COPY . .
RUN python -m pip install --no-deps --force-reinstall .

# Compiled programs and downloads go to /cache, which is worth keeping as a volume; relative paths begin at /work. Any
# user may write to both, so that `docker run --user` works.
RUN useradd --uid 1000 --home-dir /work --no-create-home chameleon \
    && install --directory --mode 1777 /cache /work
ENV HOME=/work XDG_CACHE_HOME=/cache
VOLUME /cache
USER 1000
WORKDIR /work
ENTRYPOINT ["chameleon"]
CMD ["--help"]
