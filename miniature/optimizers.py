"""Muon for the layers' matrices, AdamW for everything else, and the running average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

ADAM_RATE = 1e-3
MUON_RATE = 3e-3
LONGEST_AVERAGE = 0.998
GRADIENT_LIMIT = 2.0
WARM_UP_STEPS = 60


class Optimizers:
    """Trains the parameters of `networks` that require a gradient, and keeps their moving `average`, which is exported."""

    def __init__(self, networks: nn.Module) -> None:
        named = [(name, parameter) for name, parameter in networks.named_parameters() if parameter.requires_grad]
        matrices = [parameter for name, parameter in named if _is_layers_matrix(name, parameter)]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for _, parameter in named if parameter.dim() > 1 and id(parameter) not in chosen]
        vectors = [parameter for _, parameter in named if parameter.dim() <= 1]
        # The factor that brings an update's size to AdamW's: 0.2 times the root of the longer side.
        self._muon: Any = torch.optim.Muon(matrices, MUON_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        groups = [{"params": others, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        on_cuda = matrices[0].is_cuda
        self._adam = torch.optim.AdamW(groups, ADAM_RATE, betas=(0.9, 0.96), capturable=on_cuda)
        self._parameters: list[Tensor] = [parameter for _, parameter in named]
        self._before = [parameter.detach().clone() for parameter in self._parameters]
        self.average = deepcopy(networks).requires_grad_(False)
        averaged = dict(self.average.named_parameters())
        self._averaged: list[Tensor] = [averaged[name] for name, _ in named]

    def step(self, loss: Tensor) -> None:
        """One step against `loss` with the full learning rates. It never waits for a CUDA device."""
        self._muon.zero_grad()
        self._adam.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters, GRADIENT_LIMIT)
        self._muon.step()
        self._adam.step()

    @contextmanager
    def paced(self, rate: float, steps: int) -> Iterator[None]:
        """Scales the step taken inside the block to `rate` times the full learning rates, then updates the average.

        The block takes a full step, and the weights are then moved back by (1 - `rate`) of it. This gives the same result,
        because both optimizers' steps are proportional to the learning rate. A CUDA graph could not hold a rate that changes.
        `steps` is the number of steps before this one.
        """
        with torch.no_grad():
            torch._foreach_copy_(self._before, self._parameters)
        yield
        # The average is short at first, so that it forgets the start, and long later.
        kept = min(LONGEST_AVERAGE, (steps + 1) / (steps + 20))
        with torch.no_grad():
            if rate < 1:
                torch._foreach_lerp_(self._parameters, self._before, 1 - rate)
            torch._foreach_lerp_(self._averaged, self._parameters, 1 - kept)

    def state(self) -> dict[str, Any]:
        return {
            "muon": self._muon.state_dict(),
            "adam": self._adam.state_dict(),
            "average": self.average.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
        self.average.load_state_dict(state["average"])


def rate_at(steps: int, share: float) -> float:
    """The fraction of the full learning rates to use after `steps` steps, when the fraction `share` of the call's time has passed.

    It rises in the first steps, stays, and falls in the second half of each call's time, so that each call that is not
    interrupted ends with settled weights.
    """
    return min(1.0, (steps + 1) / WARM_UP_STEPS) * min(1.0, max(0.01, 2 * (1 - share)))


def _is_layers_matrix(name: str, parameter: nn.Parameter) -> bool:
    return ".layers." in f".{name}" and parameter.dim() == 2
