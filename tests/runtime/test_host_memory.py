"""Memory that the process keeps."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon_jax.runtime.host_memory import keep_freed_memory

SIZE = 64 << 20


def faults_of_a_block_used_again(keep: bool) -> int:
    """Page faults when a block is allocated and written that was already allocated, written and freed before."""
    if keep:
        keep_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    before = 0
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(SIZE)
        ctypes.memset(block, 1, SIZE)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_used_again_without_page_faults():
    def faults(keep: bool) -> int:
        source = f"import test_host_memory as test; print(test.faults_of_a_block_used_again({keep}))"
        command = [sys.executable, "-c", source]
        return int(subprocess.run(command, cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE).stdout)

    if faults(keep=False) < 100:
        pytest.skip("the system hands out large pages by itself")
    assert faults(keep=True) < 100
