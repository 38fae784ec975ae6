"""PromQL for the dashboard's panels: what each asks of one metric, for the chosen instances.

Rule: an expression sums over instances unless told by what, and rates over what Grafana gives.
"""

from __future__ import annotations

from streammaml.backends.instruments import PREFIX

CHOSEN = 'job=~"$job",instance=~"$instance"'
WINDOW = "[$__rate_interval]"


def series(name: str, *matchers: str) -> str:
    """The series of one of our metrics."""
    return raw(PREFIX + name, *matchers)


def raw(name: str, *matchers: str) -> str:
    """The series of a metric by its full name."""
    return f"{name}{{{','.join((CHOSEN, *matchers))}}}"


def here(expression: str) -> str:
    """Only of our processes: others that are scraped export standard names, too."""
    return f"{expression} and on (job, instance) {series('build_info')}"


def total(name: str, *matchers: str, by: str = "") -> str:
    """The sum of a gauge."""
    return f"{_sum(by)}({series(name, *matchers)})"


def rate(name: str, *matchers: str, by: str = "", offset: str = "") -> str:
    """The increase of a counter in a second."""
    late = f" offset {offset}" if offset else ""
    return f"{_sum(by)}(rate({series(name, *matchers)}{WINDOW}{late}))"


def share(name: str, part: str, whole: str = "") -> str:
    """How much of a counter, or of the ``whole`` of it, matches ``part``."""
    return f"{rate(name, part)} / {rate(name, *[whole] if whole else [])}"


def mean(name: str, *matchers: str, by: str = "", offset: str = "") -> str:
    """The mean of what a histogram took in."""
    sums, counts = (
        rate(name + suffix, *matchers, by=by, offset=offset) for suffix in ("_sum", "_count")
    )
    return f"{sums} / {counts}"


def quantile(q: float, name: str, *matchers: str, by: str = "") -> str:
    """A quantile of what a histogram took in, as exact as its buckets."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(name + '_bucket', *matchers, by=labels)})"


def buckets(name: str, *matchers: str) -> str:
    """What a histogram took in, by bucket, for a heatmap."""
    return f"sum by (le) (increase({series(name + '_bucket', *matchers)}{WINDOW}))"


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"
