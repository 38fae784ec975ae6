"""Compiled code is kept in a folder, and used from there where nothing can be written: in an image.

A small kernel of its own, in processes of their own: the folder is chosen at the import.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.worker_process import clean_environment

ROOT = Path(__file__).parents[2]
KERNEL = """\
import json, sys
from streammaml.learner.kernels.compiler import is_cached, jit

found = is_cached()

@jit
def total(values, factor):
    result = values[0] * factor
    for i in range(1, values.shape[0]):
        result += values[i] * factor
    return result

import numpy as np

kind = sys.argv[1]
result = total(np.arange(4, dtype=kind), np.dtype(kind).type(2))
stats = total.stats
hits, misses = sum(stats.cache_hits.values()), sum(stats.cache_misses.values())
print(json.dumps({"result": float(result), "found": found, "hits": hits, "misses": misses}))
"""


class Kernel:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._script = folder / "kernel.py"
        self._script.write_text(KERNEL)
        self.cache = folder / "cache"

    def run(self, kind: str = "float32", *, sealed: bool = False, **more: str) -> dict[str, Any]:
        command = [sys.executable, str(self._script), kind]
        if sealed:
            command = self._read_only(command)
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=100,
            env=clean_environment(NUMBA_CACHE_DIR=str(self.cache), PYTHONPATH=str(ROOT), **more),
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def files(self) -> set[str]:
        return {path.name for path in self.cache.rglob("*") if path.is_file()}

    def _read_only(self, command: list[str]) -> list[str]:
        """With a folder that nobody can write: root may, wherever it is only forbidden."""
        if os.geteuid() != 0:
            pytest.skip("only root can mount the folder read-only")
        if shutil.which("unshare") is None:
            pytest.skip("no unshare in PATH")
        folder = shlex.quote(str(self._folder))
        mounts = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
        return ["unshare", "--mount", "sh", "-c", f"{mounts} && exec {shlex.join(command)}"]


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_what_an_earlier_process_compiled_is_used(kernel: Kernel) -> None:
    assert kernel.run() == {"result": 12.0, "found": False, "hits": 0, "misses": 1}
    assert kernel.run() == {"result": 12.0, "found": True, "hits": 1, "misses": 0}


@pytest.mark.parametrize("home", ["", "a home where numba can write"])
def test_a_folder_that_cannot_be_written_is_read_and_the_rest_compiles(
    kernel: Kernel, tmp_path_factory: pytest.TempPathFactory, home: str
) -> None:
    place = {"HOME": str(tmp_path_factory.mktemp("home") if home else "/nonexistent")}
    kernel.run()
    files = kernel.files()

    there = kernel.run(sealed=True, **place)
    new = kernel.run("float64", sealed=True, **place)

    assert there == {"result": 12.0, "found": True, "hits": 1, "misses": 0}
    assert new == {"result": 12.0, "found": True, "hits": 0, "misses": 1}
    assert kernel.files() == files


def test_without_any_place_it_compiles_at_every_start(kernel: Kernel) -> None:
    done = kernel.run(sealed=True, HOME="/nonexistent")

    assert (done["result"], done["found"], done["hits"]) == (12.0, False, 0)
    assert kernel.files() == set()


def test_code_for_a_named_processor_is_found_under_its_name_only(kernel: Kernel) -> None:
    named: dict[str, Any] = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}

    assert kernel.run(**named)["misses"] == 1
    assert kernel.run(**named)["hits"] == 1
    assert kernel.run()["misses"] == 1
