"""Runs all policies of `benchmarks/fleet.py` under one load and compares their costs at the same wait."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.fleet_arrivals import Load
from benchmarks.fleet_policies import DEFAULTS, settings
from benchmarks.fleet_simulation import Outcome, Simulation

Frontier = list[Outcome]


def frontier(outcomes: Iterable[Outcome]) -> Frontier:
    """The outcomes that no other outcome beats in both cost and 95th percentile of wait, sorted by wait."""
    best: Frontier = []
    for outcome in sorted(outcomes, key=lambda one: (one.p95_s, one.cost)):
        if not best or outcome.cost < best[-1].cost:
            best.append(outcome)
    return best


def cost_at(best: Frontier, p95_s: float) -> float | None:
    """The cost at a 95th percentile of wait, interpolated linearly. None if the wait is shorter than the shortest in `best`.

    Beyond the longest wait it is the last cost, since a longer wait never has to cost more.
    """
    if p95_s < best[0].p95_s:
        return None
    return float(np.interp(p95_s, [one.p95_s for one in best], [one.cost for one in best]))


@dataclass(frozen=True)
class Result:
    """The outcomes of all policies under one load."""

    fronts: dict[str, Frontier]
    """The best outcomes of each policy over its grid."""
    defaults: dict[str, Outcome]
    """The outcomes of the other policies with their default settings."""


def simulate(load: Load, fine: bool) -> Result:
    """Run every policy under one load, with every setting of its grid and with its defaults."""
    fronts = {name: frontier(Simulation(load, make()).run() for make in grid) for name, grid in settings(fine).items()}
    return Result(fronts, {name: Simulation(load, make()).run() for name, make in DEFAULTS.items()})


def margins(fronts: dict[str, Frontier], waits_s: Iterable[float]) -> dict[float, float]:
    """By what fraction Sophia's cost is below the lowest of the others, for each wait that Sophia and another policy can reach."""
    found = {}
    for wait in waits_s:
        ours = cost_at(fronts["Sophia"], wait)
        others = [cost for name, best in fronts.items() if name != "Sophia" and (cost := cost_at(best, wait))]
        if ours and others:
            found[wait] = 1 - ours / min(others)
    return found
