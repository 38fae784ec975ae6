"""The scripts in .ci, as far as they can be judged without being run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).parents[1] / ".ci"
RUN, NIGHTLY = ((CI / name).read_text(encoding="utf-8") for name in ("run", "nightly"))


def test_nightly_has_all_the_steps_that_it_names() -> None:
    done = subprocess.run([CI / "nightly", "nothing"], capture_output=True, text=True, timeout=60)
    steps = done.stdout.strip().partition("there are ")[2].split()

    assert done.returncode == 1
    assert {"image", "panels", "outer-kills"} < set(steps)
    assert set(steps) == set(re.findall(r"\[([a-z-]+)\]", NIGHTLY.split("set -")[0]))
    for step in steps:
        assert f"\n{step}() {{\n" in NIGHTLY, step


@pytest.mark.parametrize("script", [RUN, NIGHTLY], ids=["run", "nightly"])
def test_packages_are_installed_without_starting_their_servers(script: str) -> None:
    assert '.ci/install "${missing[@]}"' in script
    assert "apt-get" not in script


def test_nothing_that_tests_need_is_optional_in_the_gate() -> None:
    tests = "".join(
        path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py")
    )
    asked = set(re.findall(r"\bSTREAMMAML_REQUIRE_[A-Z]+", tests))

    assert set(re.findall(r"^export (STREAMMAML_REQUIRE_\w+)=1$", RUN, re.MULTILINE)) == asked
