"""Loads a verified checkpoint into a pipeline, and turns the errors of packages and weights into LoadErrors."""

import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from serve_app import errors, weights

if TYPE_CHECKING:
    import torch


_PACKAGES: Final = ("torch", "safetensors", "tokenizers", "accelerate", "transformers", "diffusers")
"""All packages that loading and generating import. diffusers and transformers hide the name of a missing package."""

_BUILD_MISMATCH: Final = re.compile(r"libc10_cuda|torchaudio|torchvision::nms")
"""Found in the import errors of a torchaudio or torchvision that was built for another torch."""


def import_packages() -> dict[str, str]:
    """Imports all packages that generating needs, so that it cannot fail later, and returns the versions of three of them."""
    limit_spinning()
    with weights.quiet_libraries():
        for package in _PACKAGES:
            importlib.import_module(package)
        # diffusers imports this class lazily. Importing it here reveals a broken package.
        from diffusers import AceStepPipeline  # noqa: F401

    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # The same request and seed must give the same bytes. By default cuDNN may choose another algorithm each time.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


def limit_spinning() -> None:
    """Call it before torch is imported, whose libgomp reads the setting once.

    By default a thread spins 300,000 times while it waits for the others, and on cores that other processes use, too, as encoders
    and a second worker do, a song takes up to ten times as long.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@contextlib.contextmanager
def import_errors() -> Iterator[None]:
    """Turns import errors inside the block, also those that diffusers wraps in a RuntimeError, into errors that name the package.

    Raises:
        PackageMismatch: torchaudio or torchvision was built for another torch.
        PackageMissing: a package is not installed.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        causes = list(_causes(error))
        if mismatch := next((cause for cause in reversed(causes) if _BUILD_MISMATCH.search(str(cause))), None):
            raise errors.PackageMismatch(
                f"The installed torchaudio or torchvision was not built for torch {version('torch')} "
                f"({_first_line(str(mismatch))}). Sophia needs neither of them: pip uninstall torchaudio torchvision."
            ) from error
        if isinstance(error, ImportError):
            missing = next((cause.name for cause in causes if isinstance(cause, ImportError) and cause.name), "")
            package = missing.split(".")[0] or "a package"
            raise errors.PackageMissing(
                f"{package} cannot be imported ({_first_line(str(error))}). Install it: pip install {package}"
            ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields `error`, then its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def unexpected_error(name: str, error: Exception) -> errors.LoadError:
    """Returns a LoadError for an exception that has no LoadError subclass."""
    return errors.LoadError(
        f"Loading {name} failed with {type(error).__name__}: {_first_line(str(error))}. The worker's log has the traceback."
    )


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:200]


def load_pipeline(checkpoint: weights.CheckpointFacts, device: "torch.device", dtype: "torch.dtype") -> Any:
    """Returns the pipeline on its device. The weight files are memory-mapped and copied directly to the device.

    Raises:
        CorruptFile: the weights lack tensors or do not match their configuration.
    """
    from diffusers import AceStepPipeline

    from serve_app.engine.ace_step.narrow_encoder import use_narrow_encoder

    with weights.quiet_libraries(), _mismatch_errors(checkpoint):
        pipe = AceStepPipeline.from_pretrained(
            checkpoint.folder,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            device_map=device.type,  # diffusers accepts no index here; a worker has only one GPU
        )
        use_narrow_encoder(pipe.vae, checkpoint.folder)
    _require_all_weights(pipe, checkpoint)
    _fold_weight_norm(pipe.vae)
    pipe.vae.enable_tiling()  # off by default, although a comment in the pipeline says otherwise
    for part in pipe.components.values():
        if hasattr(part, "requires_grad_"):
            part.eval().requires_grad_(False)
    return pipe


@contextlib.contextmanager
def _mismatch_errors(checkpoint: weights.CheckpointFacts) -> Iterator[None]:
    """Raises CorruptFile if the weights loaded inside the block do not match the checkpoint's configuration.

    For a wrong shape diffusers raises a ValueError and transformers a RuntimeError. A tensor that is missing in diffusers'
    weights stays on the meta device; moving it raises a RuntimeError.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("mismatch|meta tensor", str(error)):
            raise
        raise errors.CorruptFile(
            f"The weights in {checkpoint.folder} lack tensors or do not match their configuration "
            f"({_first_line(str(error))}). Fetch or copy the checkpoint again."
        ) from error


def _require_all_weights(pipe: Any, checkpoint: weights.CheckpointFacts) -> None:
    """Raises CorruptFile if the weights lack tensors. Both libraries only log this, and fill them with random numbers."""
    for name, held in checkpoint.numbers.items():
        needed = sum(tensor.numel() for tensor in getattr(pipe, name).state_dict().values())
        if needed > held:
            raise errors.CorruptFile(
                f"The weights of {name} in {checkpoint.folder} lack {needed - held} of {needed} values. Fetch or copy "
                "the checkpoint again."
            )


def _fold_weight_norm(vae: Any) -> None:
    """Computes w = g * v / |v| (weight normalisation, Salimans and Kingma 2016) once instead of in every pass of the VAE."""
    from torch.nn.utils import remove_weight_norm

    for module in vae.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)
