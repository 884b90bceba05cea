"""Prove that each GPU computes: write to a small piece of its memory and read it back, by the driver's own library alone."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

SIZE = 1 << 20
PATTERN = 0xA5


class CudaError(Exception):
    """A call that failed, with the driver's own name of the error."""


def call(cuda: Any, name: str, *arguments: Any) -> None:
    """Call a function of libcuda."""
    code = getattr(cuda, name)(*arguments)
    if code:
        word = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(word))
        raise CudaError(f"{name} says {(word.value or b'unknown error').decode()} ({code})")


def prove(cuda: Any, number: int) -> str:
    """Allocate, write and read on one GPU; return its name."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    name = ctypes.create_string_buffer(100)
    call(cuda, "cuDeviceGet", ctypes.byref(device), number)
    call(cuda, "cuDeviceGetName", name, len(name), device)
    call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        call(cuda, "cuCtxSetCurrent", context)
        memory = ctypes.c_uint64()
        call(cuda, "cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(SIZE))
        copy = ctypes.create_string_buffer(SIZE)
        call(cuda, "cuMemsetD8_v2", memory, ctypes.c_ubyte(PATTERN), ctypes.c_size_t(SIZE))
        call(cuda, "cuMemcpyDtoH_v2", copy, memory, ctypes.c_size_t(SIZE))
        call(cuda, "cuMemFree_v2", memory)
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)
    if copy.raw != bytes([PATTERN]) * SIZE:
        raise CudaError("memory does not read as it was written")
    return name.value.decode()


def main(cuda: Any) -> int:
    """Prove all GPUs; the exit status is 1 if one fails."""
    count, failed = ctypes.c_int(), False
    try:
        call(cuda, "cuInit", 0)
        call(cuda, "cuDeviceGetCount", ctypes.byref(count))
        if not count.value:
            raise CudaError("cuDeviceGetCount finds no GPU")
    except CudaError as error:
        hint = ": the fabric manager of the driver's version must run first" if "SYSTEM_NOT_READY" in str(error) else ""
        print(f"CUDA cannot be used: {error}{hint}", file=sys.stderr)
        return 1
    for number in range(count.value):
        try:
            print(f"GPU {number} ({prove(cuda, number)}) computes")
        except CudaError as error:
            print(f"GPU {number} cannot be used: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as missing:
        sys.exit(f"The driver's library for CUDA cannot be loaded: {missing}")
    sys.exit(main(library))
