"""How exceptions of other libraries are read."""

import pytest
import torch

from lorarlhf.errors import UserError, first_line, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("no such model\n\nTraceback, advice, a link"), "no such model"),
        (ValueError("\n  wrong\nmore"), "wrong"),
        (RuntimeError(), "RuntimeError"),
        (KeyError("a"), "'a'"),
    ],
)
def test_first_line(error, line):
    assert first_line(error) == line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.OutOfMemoryError(),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
        RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.90 GB)"),
        RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried"),
        OSError(12, "Cannot allocate memory"),
        MemoryError("std::bad_alloc"),
        MemoryError(),
    ],
    ids=repr,
)
def test_out_of_memory_in_all_its_forms(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError(),
        ValueError("out of memory is what this row is about"),
        UserError("rollout: out of memory with a single sequence"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_failures_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_what_torch_really_raises_on_a_cpu():
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**50, dtype=torch.float64)
    assert is_out_of_memory(failure.value)
