"""Muon for the layers' matrices, AdamW for everything else, and the running average of the weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

ADAM_RATE = 1e-3
MUON_RATE = 3e-3
LONGEST_AVERAGE = 0.998
GRADIENT_LIMIT = 2.0
WARM_UP_STEPS = 60


class Optimizers:
    """Trains `networks` and keeps `average`, which is what is exported."""

    def __init__(self, networks: nn.Module) -> None:
        self._networks = networks
        named = list(networks.named_parameters())
        matrices = [parameter for name, parameter in named if _is_layers_matrix(name, parameter)]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for _, parameter in named if parameter.dim() > 1 and id(parameter) not in chosen]
        vectors = [parameter for _, parameter in named if parameter.dim() <= 1]
        # The factor that brings an update's size to AdamW's: 0.2 times the root of the longer side.
        self._muon: Any = torch.optim.Muon(matrices, MUON_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        groups = [{"params": others, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(groups, ADAM_RATE, betas=(0.9, 0.96))
        average: Any = _average
        self._average = AveragedModel(networks, multi_avg_fn=average)
        self._average.requires_grad_(False)

    @property
    def average(self) -> nn.Module:
        """Networks with the averaged weights."""
        module: nn.Module = self._average.module
        return module

    def step(self, loss: Tensor, rate: float) -> None:
        """One step against `loss`, with the full learning rates times `rate`."""
        self._muon.zero_grad()
        self._adam.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._networks.parameters(), GRADIENT_LIMIT)
        for optimizer, full in ((self._muon, MUON_RATE), (self._adam, ADAM_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = full * rate
            optimizer.step()
        self._average.update_parameters(self._networks)

    def state(self) -> dict[str, Any]:
        return {
            "muon": self._muon.state_dict(),
            "adam": self._adam.state_dict(),
            "average": self._average.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
        self._average.load_state_dict(state["average"])


def rate_at(steps: int, share: float) -> float:
    """The share of the full learning rate after `steps` of a call of whose time `share` has passed.

    It rises in the first steps, stays, and falls in the second half of each call's time, so that each call that is not
    interrupted ends with settled weights.
    """
    return min(1.0, (steps + 1) / WARM_UP_STEPS) * min(1.0, max(0.01, 2 * (1 - share)))


def _is_layers_matrix(name: str, parameter: nn.Parameter) -> bool:
    return ".layers." in f".{name}" and parameter.dim() == 2


@torch.no_grad()
def _average(averaged: Any, current: Any, steps: Tensor) -> None:
    """Moves the average; it is short at first, so that it forgets the start, and long later."""
    kept = min(LONGEST_AVERAGE, float((steps + 1) / (steps + 20)))
    torch._foreach_lerp_(list(averaged), list(current), 1 - kept)
