"""Eight fake CPU devices, shapes checked while the tests run, and small models shared between tests."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # of `pytest -n`: it inherits what is set here
KEPT = os.environ.get("CHAMELEON_TEST_PROGRAMS")  # a folder for compiled programs that outlives these tests
if not IS_WORKER:
    # Compiling is most of the time of tests, and programs that run once need not be fast. With these flags a train step
    # compiles in a fifth of the time. XLA's own passes are the same; processes that tests start with flags of their own
    # are optimised as the user's are.
    FLAGS = [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # newer ones end the process at a flag that is gone
        FLAGS.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
    os.environ["JAX_PLATFORMS"] = "cpu"
    # The same programs, large and small, are compiled for many tests and in each worker; once is enough. Forgotten when
    # the tests end.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = KEPT or tempfile.mkdtemp(prefix="chameleon-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402 - JAX must find the environment ready

# Before anything of ours is imported: every annotated array shape is now checked at each call.
install_import_hook(
    [
        "chameleon_jax.models",
        "chameleon_jax.training.losses",
        "chameleon_jax.training.adversarial",
        "chameleon_jax.training.codebook_losses",
        "chameleon_jax.training.image_tokenizer",
        "chameleon_jax.generation",
    ],
    "beartype.beartype",
)


LONGEST = (
    "tests/demo/test_demo.py",
    "tests/demo/pictures/test_pictures_demo.py",
    "tests/training/test_loop.py::test_a_run_killed",
    "tests/training/test_loop.py::test_an_image_tokenizer_killed",
    "tests/notebooks/test_notebooks.py::test_the_model_as_a_library",
    "tests/notebooks/test_notebooks.py::test_training_on_a_folder",
    "tests/notebooks/test_notebooks.py::test_text_and_pictures",
    "tests/training/test_processes.py",
    "tests/models/test_vq_parity.py::test_layers_of_the_released_size",
    "tests/bench/test_gpu.py::test_every_stage",
)
"""Tests that take half a minute or more."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Puts the longest tests first in each half: what each of two workers begins with, and ends with short tests."""
    halves = [], []
    for place, name in enumerate(LONGEST):
        halves[place % 2].extend(item for item in items if item.nodeid.startswith(name))
    rest = [item for item in items if not item.nodeid.startswith(LONGEST)]
    cut = max(0, len(items) // 2 - len(halves[0]))
    items[:] = halves[0] + rest[:cut] + halves[1] + rest[cut:]


@pytest.fixture(scope="session")
def emulator():
    """An emulator of Google Cloud Storage."""
    from bucket import emulated_bucket

    with emulated_bucket():
        yield


@pytest.fixture
def bucket(emulator, tmp_path, monkeypatch):
    """gs://bucket, an own cache for what is copied from there, and a current folder in which nothing may appear."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    assert not list((tmp_path / "here").iterdir()), "a folder named like a bucket"


def pytest_configure():
    """The same random examples every time: a failure on one machine is a failure on all."""
    from hypothesis import settings

    settings.register_profile("tests", deadline=None, derandomize=True, database=None)
    settings.load_profile("tests")


def pytest_unconfigure():
    if not IS_WORKER and not KEPT:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def read_only_folder():
    """A folder that may be read and not written. The superuser may write anywhere, so a test that runs as the superuser
    goes on as nobody."""
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to other users
    folder.chmod(0o555)
    is_superuser = os.geteuid() == 0
    if is_superuser:
        os.setresuid(65534, 65534, 0)
    try:
        yield folder
    finally:
        if is_superuser:
            os.setresuid(0, 0, 0)
        folder.chmod(0o755)
        shutil.rmtree(folder)
