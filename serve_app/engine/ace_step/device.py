"""Chooses the device and its number format, and watches its memory."""

import contextlib
import gc
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app import errors
from serve_app.config import ModelArgs

if TYPE_CHECKING:
    import torch


def choose_device(name: str, args: ModelArgs) -> "torch.device":
    """Returns the configured device of model `name`; `auto` means CUDA if available, otherwise the CPU.

    Raises:
        DeviceUnavailable: the configuration requires CUDA and this node has no CUDA device.
    """
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise errors.DeviceUnavailable(
            f"models.{name}.device is cuda, but torch finds no CUDA device on this node (torch {torch.__version__}, {built}). "
            "Run the model on a node with a GPU and its driver, or set device: cpu."
        )
    on_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda:0" if on_cuda else "cpu")


def choose_dtype(args: ModelArgs, device: "torch.device") -> "torch.dtype":
    """Returns the configured number format; `auto` means bfloat16 on CUDA and float32 on the CPU."""
    import torch

    wanted = args.dtype if args.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def set_threads(args: ModelArgs, device: "torch.device") -> None:
    """Sets the threads for computing on the CPU: the configured number; `auto` shares the cores among all workers.

    Without it, Ray's OMP_NUM_THREADS would decide: one thread for a worker that reserves less than two CPUs.
    """
    import torch

    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(
            max(1, cores // args.scaling.max_workers) if args.cpu_threads == "auto" else args.cpu_threads
        )


def device_name(device: "torch.device") -> str:
    """Returns the device for messages, with the name of the card: `cuda:0 NVIDIA H100`."""
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"


def require_memory(device: "torch.device", needed: int) -> None:
    """Checks that `needed` bytes of weights fit into free memory. On the CPU, the kernel would kill the process otherwise.

    Raises:
        DeviceMemory: less memory is free.
    """
    if needed > free_memory(device):
        raise errors.DeviceMemory(_memory_message(device, needed))


def free_memory(device: "torch.device") -> int:
    """Returns the free bytes of the device. For the CPU: Linux's MemAvailable, limited by this process's RLIMIT_AS."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = 1024 * int(re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0])
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return available
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    return max(min(available, limit - used), 0)


def _memory_message(device: "torch.device", needed: int) -> str:
    return (
        f"The weights need {needed / 1e9:.2f} GB on {device_name(device)}, but only {free_memory(device) / 1e9:.2f} GB are free. "
        "Stop other programs on the device, or use a smaller model."
    )


@contextlib.contextmanager
def memory_errors(device: "torch.device", needed: int) -> Iterator[None]:
    """Raises DeviceMemory if an allocation fails inside the block, which loads `needed` bytes of weights."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, errors.OutOfDeviceMemory) and not is_out_of_memory(error):
            raise
        raise errors.DeviceMemory(_memory_message(device, needed)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` reports a failed allocation.

    torch raises its own class on CUDA and a RuntimeError on the CPU; safetensors raises an OSError.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "Cannot allocate memory" in str(error)


def memory_facts(device: "torch.device") -> dict[str, int]:
    """Returns `free_memory` and `peak_memory` of a GPU in bytes; an empty dict for the CPU."""
    import torch

    if device.type != "cuda":
        return {}
    return {
        "free_memory": torch.cuda.mem_get_info(device)[0],
        "peak_memory": torch.cuda.max_memory_allocated(device),
    }


def release_memory(device: "torch.device") -> None:
    """Frees the tensors left behind by an error or an earlier load, then returns torch's unused memory to the GPU.

    Reference cycles through an exception's traceback keep such tensors alive. A garbage collection takes 0.2 s with torch and
    diffusers loaded, so this is not called after each song.
    """
    if device.type == "cuda":
        gc.collect()
        empty_cache(device)


def empty_cache(device: "torch.device") -> None:
    """Returns the unused memory of torch's allocator to the GPU, for other processes. This does not slow down generation."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
