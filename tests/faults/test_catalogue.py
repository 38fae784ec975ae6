"""Each fault has a test that exists, or a reason."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import streammaml
from tests.faults.catalogue import CATALOGUE, Fault

ROOT = Path(__file__).parents[2]
UNSAFE = re.compile(
    r"\b(pickle|marshal|shelve|cloudpickle|dill|joblib)\b\s*[.(]|(?<!\.)\b(eval|exec)\b\s*[.(]"
)
"""A module's ``.eval()`` is torch's word for serving."""


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_all_34_faults_are_named_once_and_in_order() -> None:
    assert [fault.number for fault in CATALOGUE] == list(range(1, 35))
    assert len({fault.name for fault in CATALOGUE}) == 34


@pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.label)
def test_a_fault_has_a_test_or_a_reason(fault: Fault) -> None:
    assert fault.tests or fault.missing
    for node in fault.tests:
        file, _, name = node.partition("::")
        assert name.startswith("test_"), node
        assert name in names_in(file), f"{node} does not exist"


def test_nothing_of_ours_unpickles() -> None:
    for path in Path(streammaml.__file__).parent.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.partition("#")[0]
            assert not UNSAFE.search(code), f"{path}:{number}"
            assert "allow_pickle=True" not in code
            if "torch.load" in code:
                assert "weights_only=True" in code, f"{path}:{number}"
