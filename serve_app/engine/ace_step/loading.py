"""From a checked checkpoint to a pipeline on its device, and what can be wrong with packages and weights."""

import contextlib
import importlib
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from serve_app import errors, weights

if TYPE_CHECKING:
    import torch


_PACKAGES: Final = ("torch", "safetensors", "tokenizers", "accelerate", "transformers", "diffusers")
"""What loading and generation import sooner or later; diffusers and transformers hide or disguise what is missing."""

_UNFIT: Final = re.compile(r"libc10_cuda|torchaudio|torchvision::nms")
"""What torchaudio and torchvision say when they were built for another torch."""


def import_packages() -> dict[str, str]:
    """Imports what generation needs, so that nothing is missing later, and tells the versions."""
    with weights.quiet_libraries():
        for package in _PACKAGES:
            importlib.import_module(package)
        # diffusers imports this lazily; here is where a broken package shows.
        from diffusers import AceStepPipeline  # noqa: F401

    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # The same request and seed must give the same bytes: cuDNN may otherwise choose another convolution each time.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


@contextlib.contextmanager
def import_errors() -> Iterator[None]:
    """Names the package at fault, also where diffusers wraps the cause into a RuntimeError of its own."""
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        causes = list(_causes(error))
        if unfit := next((cause for cause in reversed(causes) if _UNFIT.search(str(cause))), None):
            raise errors.PackageMismatch(
                f"torch {version('torch')} and torchaudio or torchvision are of different builds ({_first_line(str(unfit))}). "
                "Sophia needs neither of the two: pip uninstall torchaudio torchvision."
            ) from error
        if isinstance(error, ImportError):
            missing = next((cause.name for cause in causes if isinstance(cause, ImportError) and cause.name), "")
            package = missing.split(".")[0] or "a package"
            raise errors.PackageMissing(
                f"{package} cannot be imported ({_first_line(str(error))}). Install it: pip install {package}"
            ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def unforeseen(name: str, error: Exception) -> errors.LoadError:
    """A fault of loading model `name` that none of our own errors describes."""
    return errors.LoadError(
        f"Loading {name} ended in {type(error).__name__}: {_first_line(str(error))}. The worker's log has the traceback."
    )


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:200]


def load_pipeline(checkpoint: weights.CheckpointFacts, device: "torch.device", dtype: "torch.dtype") -> Any:
    """The pipeline on its device. Weights are memory-mapped files, copied straight to the device."""
    from diffusers import AceStepPipeline

    with weights.quiet_libraries(), _misfit_errors(checkpoint):
        pipe = AceStepPipeline.from_pretrained(
            checkpoint.folder,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            device_map=device.type,  # diffusers takes no index here, and there is one GPU a worker
        )
    _need_all_weights(pipe, checkpoint)
    _fold_weight_norm(pipe.vae)
    pipe.vae.enable_tiling()  # off by default, whatever the pipeline's comment says
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if hasattr(part, "requires_grad_"):
            part.eval().requires_grad_(False)
    return pipe


@contextlib.contextmanager
def _misfit_errors(checkpoint: weights.CheckpointFacts) -> Iterator[None]:
    """Weights that are not what the configuration says.

    Another shape is a ValueError in diffusers and a RuntimeError in transformers; a lacking tensor of diffusers stays on the
    meta device, from where it cannot be moved.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("mismatch|meta tensor", str(error)):
            raise
        raise errors.CorruptFile(
            f"The weights in {checkpoint.folder} lack tensors or do not fit their configuration "
            f"({_first_line(str(error))}). Fetch or copy the checkpoint again."
        ) from error


def _need_all_weights(pipe: Any, checkpoint: weights.CheckpointFacts) -> None:
    """Refuses weights that lack tensors, which both libraries fill with random numbers and no more than a log line."""
    for name, held in checkpoint.numbers.items():
        needed = sum(tensor.numel() for tensor in getattr(pipe, name).state_dict().values())
        if needed > held:
            raise errors.CorruptFile(
                f"The weights of {name} in {checkpoint.folder} lack {needed - held} of {needed} numbers. Fetch or copy the "
                "checkpoint again."
            )


def _fold_weight_norm(vae: Any) -> None:
    """Computes w = g * v / |v| (Salimans and Kingma 2016) once; AutoencoderOobleck would do it in every pass."""
    from torch.nn.utils import remove_weight_norm

    for module in vae.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)
