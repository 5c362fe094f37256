# Chameleon on CPUs: `docker build -f docker/cpu.Dockerfile -t chameleon:cpu .` at the root of the repository.
# docs/launch.md says under "Images" how to run it, and what of it was tested.
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
    && python -m pip install --constraint constraints.txt ".[demo,gcs,released,serve]"

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

# The server, of the model mounted at /model. It refuses to start without keys: CHAMELEON_KEYS, or --keys FILE.
FROM command AS serve
EXPOSE 8000
# Loading and compiling a large model takes minutes; the next start finds its programs in /cache.
HEALTHCHECK --interval=30s --timeout=5s --start-period=15m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
