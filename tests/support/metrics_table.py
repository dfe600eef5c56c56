"""Writes docs/METRICS.md from metrics.py: `python -m tests.support.metrics_table`."""

from serve_app.metrics import METRICS, Metric
from tests.support.paths import ROOT

FILE = ROOT / "docs" / "METRICS.md"
_HEAD = """# Metrics

Ray exports these on each node's metrics port. A scrape configuration, a dashboard and alert rules are in `cluster/monitoring/`.
Inside Serve each metric also has the labels `application`, `deployment` and `replica`. Every API process exports the queue's
figures, so a query takes `max()` over them.

`python -m tests.support.metrics_table` writes this page from `serve_app/metrics.py`.

"""


def page() -> str:
    """The whole page as Markdown."""
    rows = [_row(metric) for metric in METRICS]
    return _HEAD + "\n".join(["| name in Prometheus | labels | meaning |", "|---|---|---|", *rows]) + "\n"


def _row(metric: Metric) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(metric.exported))
    labels = ", ".join(f"`{tag}`" for tag in metric.tags)
    return f"| {names} | {labels} | {metric.meaning} |"


if __name__ == "__main__":
    FILE.write_text(page())
