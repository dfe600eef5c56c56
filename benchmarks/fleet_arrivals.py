"""The jobs of the simulated fleet of `benchmarks/fleet.py`: when they arrive and how long they take."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

HOUR_S: Final = 3600.0
SHORTEST_S: Final = 15.0
"""Job lengths are uniformly distributed between this and eight times this."""

MEAN_S: Final = SHORTEST_S * 4.5
"""The mean length of a job."""

MISJUDGED: Final = 0.1
"""Standard deviation of a job's real length from its estimate, relative to the estimate."""


@dataclass(frozen=True)
class Load:
    """A list of jobs, one entry per job in each list, in order of arrival. All values are in seconds."""

    name: str
    times: list[float]
    """When each job arrives."""
    estimates: list[float]
    """How long the policy expects each job to take."""
    lengths: list[float]
    """How long each job takes."""
    estimated_until: list[float] = field(repr=False)
    """The sum of the estimates of all jobs before each one, and at the end the sum of all."""

    @classmethod
    def of(cls, name: str, times: np.ndarray, random: np.random.Generator) -> "Load":
        """Jobs of random length at the given times."""
        estimates = SHORTEST_S * (1 + 7 * random.random(len(times)))
        lengths = estimates * random.lognormal(-(MISJUDGED**2) / 2, MISJUDGED, len(times))
        until = np.concatenate([[0.0], np.cumsum(estimates)])
        return cls(name, np.sort(times).tolist(), estimates.tolist(), lengths.tolist(), until.tolist())


def poisson(workers: float, hours: float, seed: int = 1) -> Load:
    """Independent arrivals that keep `workers` workers busy on average."""
    random = np.random.default_rng(seed)
    count = random.poisson(workers / MEAN_S * hours * HOUR_S)
    return Load.of(f"Poisson, {workers:g} busy on average", random.random(count) * hours * HOUR_S, random)


def bursts(hours: float, every_s: float = 1200.0, seed: int = 2) -> Load:
    """Bursts of 3 to 100 jobs within 10 s, at random moments that are `every_s` apart on average, and no jobs in between."""
    random = np.random.default_rng(seed)
    starts = np.cumsum(random.exponential(every_s, int(2 * hours * HOUR_S / every_s)))
    starts = starts[starts < hours * HOUR_S]
    sizes = np.exp(random.uniform(np.log(3), np.log(100), len(starts))).astype(int)
    times = np.repeat(starts, sizes)
    return Load.of("Bursts of 3 to 100 jobs", times + 10 * random.random(len(times)), random)


def day_and_night(top: float, hours: float = 24.0, seed: int = 3) -> Load:
    """A day that goes from 1 busy GPU at midnight to `top` at noon and back.

    The logarithm of the load follows a cosine. The arrivals at each moment are independent (Poisson).
    """
    random = np.random.default_rng(seed)
    moments = np.arange(0, hours * HOUR_S, 10.0)
    busy = np.exp(np.log(top) * (1 - np.cos(2 * np.pi * moments / (hours * HOUR_S))) / 2)
    times = np.repeat(moments, random.poisson(busy / MEAN_S * 10))
    return Load.of(f"Day and night, 1 to {top:,g} GPUs", times + 10 * random.random(len(times)), random)
