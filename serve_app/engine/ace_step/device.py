"""The device: which one, in which number format, and its memory."""

import contextlib
import gc
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
    """The configured device of model `name`; `auto` is CUDA where there is one. Raises DeviceUnavailable."""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        raise errors.DeviceUnavailable(
            f"models.{name}.device is cuda, but this node offers only the CPU (torch {torch.__version__}, {built}; CUDA "
            "devices visible: 0). Run it on a node with a GPU and its driver, or set device: cpu."
        )
    on_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda:0" if on_cuda else "cpu")


def choose_dtype(args: ModelArgs, device: "torch.device") -> "torch.dtype":
    """The configured number format; `auto` is bfloat16 on CUDA and float32 on the CPU."""
    import torch

    wanted = args.dtype if args.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def device_name(device: "torch.device") -> str:
    """The device in words, with the card's name."""
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"


def need_memory(device: "torch.device", needed: int) -> None:
    """Refuses to load `needed` bytes of weights where less is free: on the CPU, the kernel would kill the process.

    Raises:
        DeviceMemory
    """
    if needed > free_memory(device):
        raise errors.DeviceMemory(_too_little(device, needed))


def free_memory(device: "torch.device") -> int:
    """Free bytes of the device; for the CPU what Linux calls available, within this process's own limit."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = 1024 * int(re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0])
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return available
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    return max(min(available, limit - used), 0)


def _too_little(device: "torch.device", needed: int) -> str:
    return (
        f"The weights need {needed / 1e9:.2f} GB on {device_name(device)}, where {free_memory(device) / 1e9:.2f} GB are free. "
        "End what else runs there, or take a smaller model."
    )


@contextlib.contextmanager
def memory_errors(device: "torch.device", needed: int) -> Iterator[None]:
    """An allocation that fails while `needed` bytes of weights are loaded is DeviceMemory."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, errors.OutOfDeviceMemory) and not is_out_of_memory(error):
            raise
        raise errors.DeviceMemory(_too_little(device, needed)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch has a class for it on CUDA and a RuntimeError on the CPU, safetensors an OSError."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "Cannot allocate memory" in str(error)


def memory_facts(device: "torch.device") -> dict[str, int]:
    """`free_memory` and `peak_memory` of a GPU in bytes; nothing on the CPU."""
    import torch

    if device.type != "cuda":
        return {}
    return {
        "free_memory": torch.cuda.mem_get_info(device)[0],
        "peak_memory": torch.cuda.max_memory_allocated(device),
    }


def release_memory(device: "torch.device") -> None:
    """Frees what an error or an earlier load left behind, then gives unused memory back to the GPU.

    Such leftovers hang in reference cycles, through an exception's traceback. Looking for cycles takes 0.2 s with torch and
    diffusers loaded, so this is not for songs that came out well.
    """
    if device.type == "cuda":
        gc.collect()
        empty_cache(device)


def empty_cache(device: "torch.device") -> None:
    """Gives unused memory of torch's allocator back to the GPU, which others may share. No song is slower for it."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
