"""What the scaling policy (`serve_app.scaling.policy.decide`) costs in a simulated fleet, beside Ray Serve's and two of RunPod's.

Usage: python -m benchmarks.fleet     (`make fleet`): simulates, then writes the tables and the picture of docs/FLEET.md

Every policy gets the same arrivals, job lengths, start-up times and dispatch: an idle worker takes the oldest job at once. Each
policy runs with every combination of a grid of its settings. The best of these runs are its frontier: the lowest cost at each 95th
percentile of wait. Cost is the time for which workers exist, including start-up and idle time, divided by the time for which they
work, so that 1.0 is the optimum.
"""

import argparse
import time
from pathlib import Path
from typing import Final

from benchmarks.fleet_arrivals import bursts, day_and_night, poisson
from benchmarks.fleet_comparison import Result, simulate
from benchmarks.fleet_report import defaults_table, draw, table, write

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "FLEET.md"


def main() -> None:
    """Simulate all loads, print the tables, and write them and the picture into the documents."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    loads = [(poisson(1, 36), True), (poisson(8, 18), True), (bursts(36), True), (day_and_night(1000), False)]
    results: dict[str, Result] = {}
    for load, fine in loads:
        began = time.monotonic()
        results[load.name] = simulate(load, fine)
        print(table(load.name, results[load.name].fronts))
        print(f"{len(load.times):,} jobs, {time.monotonic() - began:.0f} s\n", flush=True)
    tuned = "\n".join(table(name, result.fronts) for name, result in results.items())
    write(
        DOCUMENT, "### With default settings\n\n" + defaults_table(results) + "\n### With the best settings\n\n" + tuned
    )
    draw(results, DOCUMENT.with_name("fleet.png"))


if __name__ == "__main__":
    main()
