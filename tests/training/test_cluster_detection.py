"""A run joins other processes where JAX would find them, and only there. The environments are faked."""

from __future__ import annotations

import http.server
import threading

import jax
import pytest

from chameleon_jax.config import ConfigError, DistributedConfig
from chameleon_jax.runtime import distributed
from chameleon_jax.runtime.distributed import _cluster, place_in_cluster, start

SLURM_STEP = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "16", "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "16",
}  # fmt: skip
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}
GKE_TPU = {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}
INDEXED_JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
TPU_VM = {"TPU_ML_PLATFORM": "JAX"}
LIBTPU_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_ID": "WARNING: could not determine TPU worker number, please set it",
    "TPU_WORKER_HOSTNAMES": "WARNING: could not determine TPU worker hostnames or IP addresses, please set it",
}  # fmt: skip
"""What the children of a process inherit that compiled for a TPU elsewhere."""


def without(variables: dict[str, str], name: str) -> dict[str, str]:
    return {other: value for other, value in variables.items() if other != name}


@pytest.fixture
def environment(monkeypatch):
    """Replaces the variables that tell about clusters."""
    for name in (*SLURM_STEP, *OPEN_MPI, *GKE_TPU, *INDEXED_JOB, *TPU_VM, "TPU_PROCESS_ADDRESSES",
                 "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "TPU_SKIP_MDS_QUERY", "OMPI_COMM_WORLD_RANK",
                 *distributed.ENVIRONMENT.values()):  # fmt: skip
        monkeypatch.delenv(name, raising=False)

    def fake(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return fake


@pytest.fixture
def joined(monkeypatch) -> list[dict]:
    """What JAX is asked to join."""
    calls: list[dict] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    return calls


@pytest.fixture
def metadata_server(environment):
    """Answers like the metadata server of a Cloud TPU VM with the attributes put into it."""
    attributes: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = attributes.get(self.path.removeprefix("/computeMetadata/v1/instance/attributes/"))
            known = found is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((found or "").encode())

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("localhost", 0), Handler) as server:
        environment({"GCE_METADATA_IP": f"localhost:{server.server_port}", "no_proxy": "*", **TPU_VM})
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield attributes
        server.shutdown()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (SLURM_STEP, "Slurm"),
        (OPEN_MPI, "Open MPI"),
        (GKE_TPU, "Cloud TPU"),
        ({"TPU_PROCESS_ADDRESSES": "host-0:8476,host-1:8476", "TPU_WORKER_ID": "0"}, "Cloud TPU"),
        ({**GKE_TPU, "TPU_WORKER_HOSTNAMES": "host-0", "MEGASCALE_NUM_SLICES": "2"}, "Cloud TPU"),
        ({**GKE_TPU, **INDEXED_JOB}, "Cloud TPU"),
    ],
)
def test_clusters_that_jax_knows_are_joined(environment, joined, variables, name):
    environment(variables)
    assert _cluster() == name
    start(DistributedConfig(heartbeat_seconds=17))
    assert joined == [{"heartbeat_timeout_seconds": 17, "shutdown_timeout_seconds": 60}]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {**SLURM_STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        {**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "1"},  # salloc -n 16 with an interactive step
        without(SLURM_STEP, "SLURM_STEP_NODELIST"),  # a batch script without srun
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", **INDEXED_JOB},  # one host of TPUs in GKE
        {"TPU_PROCESS_ADDRESSES": "local", "TPU_WORKER_ID": "0", **TPU_VM},  # notebooks
        LIBTPU_WITHOUT_TPU,
        {**TPU_VM, "TPU_SKIP_MDS_QUERY": "1"},
        without(INDEXED_JOB, "JOB_COMPLETION_INDEX"),  # a pod of its own
    ],
)
def test_one_process_is_no_cluster(environment, joined, variables):
    environment(variables)
    start(DistributedConfig())
    assert joined == []
    assert place_in_cluster() == (0, 1)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        (SLURM_STEP, (9, 16)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        (GKE_TPU, (1, 2)),
        ({**GKE_TPU, "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"}, (5, 6)),
        ({"TPU_PROCESS_ADDRESSES": "host-0:8476,host-1:8476", "TPU_WORKER_ID": "0"}, (0, 2)),
        ({"CHAMELEON_PROCESS": "3", "CHAMELEON_PROCESSES": "4", **SLURM_STEP}, (3, 4)),
    ],
)
def test_work_without_a_connection_is_divided_as_the_cluster_says(environment, variables, place):
    environment(variables)
    assert place_in_cluster() == place


def test_a_place_outside_the_cluster_is_refused(environment):
    environment({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="OMPI_COMM_WORLD_RANK = '2'"):
        place_in_cluster()


@pytest.mark.parametrize(
    ("number", "endpoints", "tpu_env", "variables", "place"),
    [
        ("0", "10.0.0.1", "WORKER_ID: '0'\n", {}, (0, 1)),
        ("1", "10.0.0.1,10.0.0.2", "ACCELERATOR_TYPE: 'v5p-16'\n", {}, (1, 2)),
        ("1", "a:1:10.0.0.1,b:2:10.0.0.2", "MEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\n", {}, (5, 6)),
        ("0", "10.0.0.1", "", {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}, (1, 2)),
        (None, None, None, {}, (0, 1)),
    ],
)
def test_a_tpu_vm_asks_its_metadata_server(metadata_server, environment, number, endpoints, tpu_env, variables, place):
    answers = {"agent-worker-number": number, "worker-network-endpoints": endpoints, "tpu-env": tpu_env}
    metadata_server |= answers
    environment(variables)
    assert place_in_cluster() == place
    assert _cluster() == ("Cloud TPU" if place[1] > 1 else "")


def test_place_on_a_tpu_vm_is_what_jax_says(metadata_server):
    pytest.importorskip("requests")
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    metadata_server |= {
        "agent-worker-number": "1",
        "worker-network-endpoints": "10.0.0.1,10.0.0.2",
        "tpu-env": "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n",
    }
    assert place_in_cluster() == (GceTpuCluster.get_process_id(), GceTpuCluster.get_process_count())


def test_a_tpu_vm_without_metadata_server_is_alone(environment):
    environment({**TPU_VM, "GCE_METADATA_IP": "localhost:9", "no_proxy": "*"})
    assert _cluster() == ""
    assert place_in_cluster() == (0, 1)


@pytest.mark.parametrize("installed", [True, False])
def test_an_indexed_job_needs_the_package_kubernetes(environment, monkeypatch, installed):
    environment(INDEXED_JOB)
    monkeypatch.setattr(distributed, "find_spec", lambda name: object() if installed else None)
    if installed:
        assert _cluster() == "Kubernetes"
    else:
        with pytest.raises(ConfigError, match=r"pip install 'jax\[k8s\]'.*CHAMELEON_PROCESSES=1"):
            start(DistributedConfig())


def test_open_mpi_5_is_refused_rather_than_run_as_many_runs(environment, joined):
    environment(without(OPEN_MPI, "OMPI_MCA_orte_hnp_uri"))
    with pytest.raises(ConfigError, match=r"CHAMELEON_PROCESS to \$OMPI_COMM_WORLD_RANK"):
        start(DistributedConfig())
    assert joined == []


def test_keys_win_over_the_cluster(environment, joined):
    environment(SLURM_STEP)
    start(DistributedConfig(processes=1))
    assert joined == []
    start(DistributedConfig("node1:1234", 2, 1))
    (call,) = joined
    assert call["coordinator_address"] == "node1:1234"
    assert call["cluster_detection_method"] == "deactivate"
