"""What this machine can do: device, compute dtype, matmul rate, whether compiling is possible."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import time
from dataclasses import dataclass
from functools import cache

import torch

from liuli.model.ops import multiplies_bfloat16


@dataclass(frozen=True)
class Machine:
    """Facts about the machine; rates in FLOP/s, memory in bytes."""

    device: str
    name: str
    threads: int
    dtype: str  # the dtype in which matrix multiplications are fastest: "bfloat16" or "float32"
    float32_rate: float
    bfloat16_rate: float
    memory: int
    compiler: bool  # torch.compile can work here

    @property
    def rate(self) -> float:
        return max(self.float32_rate, self.bfloat16_rate)

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def choose_device() -> str:
    """CUDA where there is one, else Apple's GPU, else the CPU: of whole batches; one answer at a time is written where
    `engine.pick_device` says."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def matmul_rate(device: str, dtype: torch.dtype, size: int = 2048, seconds: float = 0.25) -> float:
    """Best rate of size x size matrix multiplications seen within about `seconds`, in FLOP/s."""
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    left @ right  # the first call loads kernels
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        synchronise(device)
        start = time.perf_counter()
        left @ right
        synchronise(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


@cache
def measure_machine() -> Machine:
    """Look at the machine for about half a second."""
    device = choose_device()
    size = 2048 if device == "cpu" else 8192
    wide = matmul_rate(device, torch.float32, size)
    narrow = matmul_rate(device, torch.bfloat16, size if multiplies_bfloat16(torch.device(device)) else 128)
    return Machine(
        device=device,
        name=torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name(),
        threads=torch.get_num_threads(),
        dtype="bfloat16" if narrow > 1.2 * wide else "float32",
        float32_rate=wide,
        bfloat16_rate=narrow,
        memory=memory_bytes(device),
        compiler=can_compile(device),
    )


def keep_freed_memory() -> None:
    """Tell the allocator to keep what is freed (glibc only; elsewhere nothing happens).

    A training step frees and asks again for the same large tensors. glibc hands them back to the system each time, and
    every page of the next step is faulted in and zeroed anew: a tenth of an eager step on the CPU (measured).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def can_compile(device: str) -> bool:
    """torch.compile needs a C++ compiler on the CPU and Triton on CUDA."""
    if device == "cpu":
        return shutil.which(os.environ.get("CXX", "g++")) is not None or shutil.which("clang++") is not None
    if device.startswith("cuda"):
        import importlib.util

        return importlib.util.find_spec("triton") is not None
    return False


def memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
