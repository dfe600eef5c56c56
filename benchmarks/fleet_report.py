"""The tables and the picture that `benchmarks/fleet.py` writes into docs/FLEET.md."""

from pathlib import Path
from typing import Any, Final

from benchmarks.fleet_comparison import Frontier, Result, cost_at, margins

WAITS_S: Final = (30, 45, 60, 90, 120, 150, 200, 300, 400, 600)
"""The 95th percentiles of wait at which the table compares the costs."""

BEGIN: Final = "<!-- begin: written by benchmarks/fleet.py -->"
END: Final = "<!-- end: written by benchmarks/fleet.py -->"


def defaults_table(results: dict[str, Result]) -> str:
    """Markdown: the cost of each other policy with its default settings, and Sophia's at the same 95th percentile of wait."""
    lines = ["| load | policy | wait, p50 | wait, p95 | cost | Sophia, same p95 | cheaper by |", "|---" * 7 + "|"]
    for load, result in results.items():
        for name, one in result.defaults.items():
            ours = cost_at(result.fronts["Sophia"], one.p95_s)
            cells = f"{ours:.3f} | {1 - ours / one.cost:.1%}" if ours else "– | –"
            lines.append(f"| {load} | {name} | {one.p50_s:.0f} s | {one.p95_s:.0f} s | {one.cost:.3f} | {cells} |")
    return "\n".join(lines) + "\n"


def table(name: str, fronts: dict[str, Frontier]) -> str:
    """Markdown: the cost of each policy at each 95th percentile of wait, with the settings that are best for that wait."""
    lines = [f"**{name}**", "", "| wait, p95 | " + " | ".join(f"{wait} s" for wait in WAITS_S) + " |"]
    lines.append("|---" * (len(WAITS_S) + 1) + "|")
    for policy, best in fronts.items():
        costs = [cost_at(best, wait) for wait in WAITS_S]
        lines.append(f"| {policy} | " + " | ".join(f"{cost:.3f}" if cost else "–" for cost in costs) + " |")
    below = margins(fronts, WAITS_S)
    cells = [f"{below[wait]:.1%}" if wait in below else "–" for wait in WAITS_S]
    lines.append("| *Sophia cheaper than the best other by* | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Result], path: Path) -> None:
    """Draw cost against wait: p95 above, p50 below, one column per load. Crosses are the other policies with their defaults."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(results), figsize=(4.2 * len(results), 7), squeeze=False)
    for column, (name, result) in enumerate(results.items()):
        for row, wait in enumerate(("p95_s", "p50_s")):
            _panel(axes[row][column], result, wait)
        axes[0][column].set_title(name, fontsize=10)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def _panel(axis: Any, result: Result, wait: str) -> None:
    for name, best in result.fronts.items():
        ours = name == "Sophia"
        points = sorted((getattr(one, wait), one.cost) for one in best)
        axis.plot(*zip(*points, strict=True), "o-", ms=3, lw=2.2 if ours else 1, zorder=3 if ours else 2, label=name)
    axis.plot(
        [getattr(one, wait) for one in result.defaults.values()], [one.cost for one in result.defaults.values()], "kx"
    )
    dearest = max(one.cost for best in result.fronts.values() for one in best)
    axis.set_xlim(0, 400)
    axis.set_ylim(1, min(3, dearest))
    axis.set_xlabel(f"wait, {wait[:3]} [s]")
    axis.set_ylabel("GPU-seconds paid / GPU-seconds of work")
    axis.grid(alpha=0.3)


def write(path: Path, text: str) -> None:
    """Put `text` between the markers of a document."""
    document = path.read_text(encoding="utf-8")
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
