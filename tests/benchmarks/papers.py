"""The paper tables, from this library: ``python -m tests.benchmarks.papers --json FILE``.

Sinusoid regression (mean squared error after adaptation) and Omniglot 5-way 1-shot (accuracy), each
with a fixed seed and a 95 % interval over fresh test tasks, the published figures beside ours.
Omniglot needs its images, which are not part of the project, and trains for ``--minutes`` on
``--threads`` cores; every other row takes half a minute to three on one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streammaml.meta.outer_loop import Rule
from tests.benchmarks import papers_omniglot
from tests.benchmarks.paper_scores import Score
from tests.benchmarks.papers_sinusoid import THREE, Method, run

IMAGES = Path(__file__).parents[3] / "shared" / "data" / "omniglot28.npz"
OMNIGLOT = "omniglot_5_way_1_shot"
SEED = 1
NOTE = (
    "PARL trains on 1,600 fixed tasks of 15 points, ours are fresh; Li 2017 has ω = 1 throughout "
    "at 10 shots, which is easier. Finn 2017 splits the characters at random, which is easier than "
    "ours, by alphabet."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """What stands beside a row: what was published, and what is asked of ours."""

    published: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def target(self) -> float | list[float] | None:
        if self.least is not None and self.most is not None:
            return [self.least, self.most]
        return self.least if self.most is None else self.most

    def verdict(self, mean: float) -> str:
        if self.target is None:
            return ""
        above = self.least is None or mean >= self.least
        below = self.most is None or mean <= self.most
        return "reached" if above and below else "NOT reached"

    def wanted(self) -> str:
        if self.target is None:
            return ""
        if self.most is None:
            return f">= {self.least:g}"
        return f"<= {self.most:g}" if self.least is None else f"{self.least:g} - {self.most:g}"


SINUSOID: dict[str, tuple[Method, Paper]] = {
    "sinusoid_5_maml_1": (
        Method(shots=5, rule=Rule.MAML, rate=0.01, learn_rates=False),
        Paper(published="1.13 ± .18 (Li 2017), .93 ± .02 (PARL)"),
    ),
    "sinusoid_5_fomaml_1": (
        Method(shots=5, rule=Rule.FOMAML, rate=0.01, learn_rates=False),
        Paper(),
    ),
    "sinusoid_5_metasgd_1": (
        Method(shots=5, rule=Rule.METASGD),
        Paper(published=".90 ± .16 (Li 2017)", least=0.75, most=0.95),
    ),
    "sinusoid_5_anil_1": (Method(shots=5, rule=Rule.ANIL), Paper()),
    "sinusoid_5_mamlpp_3": (Method(shots=5, rule=Rule.MAML, steps=3), Paper()),
    "sinusoid_5_mamlpp_3_deep": (
        Method(shots=5, rule=Rule.MAML, steps=3, rate=0.002, hidden=THREE),
        Paper(published=".34 ± .01 (PARL)", most=0.34),
    ),
    "sinusoid_5_ridge": (Method(shots=5, rule=None), Paper()),
    "sinusoid_5_ridge_deep": (Method(shots=5, rule=None, hidden=THREE), Paper(most=0.25)),
    "sinusoid_10_maml_1": (
        Method(shots=10, rule=Rule.MAML, rate=0.01, learn_rates=False),
        Paper(published=".670 (ω = 1, Li 2017)", most=1.15),
    ),
    "sinusoid_10_metasgd_1": (
        Method(shots=10, rule=Rule.METASGD),
        Paper(published=".315 (ω = 1, Li 2017)"),
    ),
    "sinusoid_10_ridge": (Method(shots=10, rule=None), Paper()),
}
"""``deep``: 1-40-40-40-1, the others 1-40-40-1; the last number is that of inner steps."""
PAPERS = {name: paper for name, (_, paper) in SINUSOID.items()} | {
    OMNIGLOT: Paper(published=".987 (Finn 2017, characters split at random)", least=0.93)
}


def measure(name: str, given: argparse.Namespace) -> Score:
    if name == OMNIGLOT:
        torch.set_num_threads(given.threads)
        return papers_omniglot.run(given.omniglot, 60 * given.minutes, SEED, given.tasks)
    torch.set_num_threads(1)
    return run(SINUSOID[name][0], SEED, given.tasks, given.iterations)


def row_of(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The issue's form; prints the row."""
    paper, score = PAPERS[name], measure(name, given)
    verdict = paper.verdict(score.mean)
    print(
        f"{name:26} {score.mean:6.3f} ± {score.ci95:.3f}  {paper.wanted():12} {verdict:12}"
        f"{score.steps:7,} {score.train_s:6.0f} s  {paper.published}",
        flush=True,
    )
    return {
        "mean": score.mean,
        "ci95": score.ci95,
        "target": paper.target,
        "verdict": verdict,
        "published": paper.published,
        "tasks": score.tasks,
        "seed": SEED,
        "steps": score.steps,
        "train_s": round(score.train_s, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(PAPERS), metavar="NAME", default=[])
    parser.add_argument("--minutes", type=float, default=20.0, help="of training on Omniglot")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on Omniglot")
    parser.add_argument("--tasks", type=int, default=2_000, help="fresh ones, to judge by")
    parser.add_argument("--iterations", type=int, help="of a sinusoid row; its own by default")
    parser.add_argument("--omniglot", type=Path, default=IMAGES, help="omniglot28.npz")
    given = parser.parse_args(arguments)
    names = given.only or list(PAPERS)
    if OMNIGLOT in names and not given.omniglot.exists():
        print(f"{OMNIGLOT}: skipped, {given.omniglot} is not there", file=sys.stderr)
        names.remove(OMNIGLOT)
    print(f"{'row':26} {'ours':>6} ± 95 %  {'target':25}{'steps':>7} {'training':>8}  published")
    out: dict[str, dict[str, Any]] = {}
    for name in names:
        out[name] = row_of(name, given)
        if given.json is not None:  # with each row: a long run may be cut short
            given.json.write_text(json.dumps(out, indent=2) + "\n")
    print(NOTE)


if __name__ == "__main__":
    main()
