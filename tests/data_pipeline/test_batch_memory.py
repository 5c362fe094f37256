"""Memory of batches is used again, but never while something refers to it."""

import numpy as np

from data_pipeline.batch_memory import BatchMemory


def test_memory_is_used_again_when_nothing_refers_to_it():
    memory = BatchMemory()
    first = memory.empty((2, 3), np.int32)
    first[:] = 7
    part = first[1:].view(np.float32).reshape(3)
    address = first.ctypes.data
    del first
    second = memory.empty((2, 3), np.int32)
    second[:] = 8
    assert (part.view(np.int32) == 7).all()
    del part
    third = memory.empty((2, 3), np.int32)
    assert third.ctypes.data == address
    assert not np.shares_memory(second, third)


def test_other_shapes_have_memory_of_their_own():
    memory = BatchMemory()
    memory.empty((2, 3), np.int32)
    assert memory.empty((4, 3), np.int32).shape == (4, 3)
    assert memory.empty((4, 3), np.float64).dtype == np.float64
