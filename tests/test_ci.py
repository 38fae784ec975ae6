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


def test_pictures_of_the_pages_are_kept_where_git_does_not_see_them() -> None:
    (folder,) = re.findall(r"^export STREAMMAML_ARTIFACTS=\$PWD/(\w+)$", RUN, re.MULTILINE)

    assert f"/{folder}/" in (CI.parent / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_picture_of_the_readme_is_made_by_the_command_that_stands_there() -> None:
    readme = (CI.parent / "README.md").read_text(encoding="utf-8")
    command = re.search(r'STREAMMAML_ARTIFACTS=(\S+) make test ARGS="(\S+) -k (\w+)"', readme)
    assert command is not None
    folder, file, words = command.groups()
    pages = (CI.parent / file).read_text(encoding="utf-8")

    (picture,) = re.findall(rf"\]\({folder}/([\w-]+)\.png\)", readme)
    (test,) = (part for part in pages.split("\ndef test_") if words in part.partition("(")[0])
    assert f'"{picture}"' in test
