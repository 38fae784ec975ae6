"""Imports only point down, and the pure rooms stay pure: read from the sources, not from a run.

A layer is a row of the table; what stands in one row may import what stands below it, and its
row's neighbours as long as no cycle arises. ``initialization`` stands beside ``config``: it turns
one into the shape of a model.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import streammaml

PACKAGE = Path(streammaml.__file__).parent

LAYERS = [
    {"events", "errors", "initialization", "sealed", "query"},
    {"config", "custom"},
    {"learner", "meta"},
    {"backends"},
    {"worker", "tenure", "recovery", "partition", "watchdog", "mailbox", "reporting"}
    | {"patience", "disk", "c_clock", "misplaced", "rejections", "unreadable"}
    | {"meta_trainer", "following", "catalogue", "starts", "evaluation", "feed", "compat"}
    | {"catalogue", "checkpoint", "succession", "recorded"},
    # What the commands do, each imported when it is called.
    {"observers", "config_file", "serving", "jobs", "training", "outer", "doctor", "demo"}
    | {"inspection", "outer_serving", "outer_run"},
    {"flags", "process"},
    {"cli", "__main__"},
    {"__init__"},  # the package's front door may name anything
]
STRANGERS = [("learner", "meta"), ("meta", "learner")]
"""Neighbours that meet in ``initialization`` only."""

PURE = [
    *("learner", "meta", "events", "errors", "config", "custom"),
    *("initialization", "sealed", "query"),
]
FORBIDDEN = {
    *("kafka", "prometheus_client", "logging", "structlog", "time", "datetime", "random"),
    *("os", "threading", "asyncio", "socket", "sqlite3", "http", "urllib", "subprocess", "signal"),
    *("pathlib", "io", "shutil", "tempfile", "multiprocessing", "concurrent", "secrets", "uuid"),
}
ALLOWED = {
    ("events.py", "datetime"),  # the type of a field; no clock is read
    ("learner/kernels/compiler.py", "pathlib"),  # its own sources, for the compile cache
}


LATE = {"detectors.py", "starts.py"}
"""River takes half of a worker's start, torch more, and most need neither. The commands of ``cli``
import what they need, too."""


def sources(room: str = "") -> list[Path]:
    """The modules of one room, or of the whole package."""
    if not room:
        return sorted(PACKAGE.rglob("*.py"))
    return sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


def imports(path: Path, late: bool = True) -> Iterator[str]:
    """The dotted modules that a file imports; ``from a import b`` gives a.b.

    Wherever in it; or, without the ``late`` ones, outside its functions.
    """
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if late or not isinstance(node, ast.FunctionDef):
            todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_rooms(path: Path) -> set[str]:
    """The rooms of this package that a file imports, itself aside."""
    rooms = {i.split(".")[1] for i in imports(path) if i.startswith("streammaml.")}
    return rooms - {room_of(path)}


def rank(room: str) -> int:
    return next(level for level, rooms in enumerate(LAYERS) if room in rooms)


def test_every_module_has_its_layer() -> None:
    assert {room_of(path) for path in sources()} <= set().union(*LAYERS)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)

    for other in own_rooms(path):
        assert rank(other) <= rank(room), f"{room} must not import {other}"
        assert (room, other) not in STRANGERS, f"{room} and {other} meet in initialization only"


def test_no_room_imports_itself_by_a_detour() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources():
        graph.setdefault(room_of(path), set()).update(own_rooms(path))

    while leaves := [room for room, needs in graph.items() if not needs & set(graph)]:
        for room in leaves:
            del graph[room]

    assert not graph, f"a cycle among {sorted(graph)}"


def test_no_module_imports_itself_by_a_detour() -> None:
    names = {dotted(path): path for path in sources()}
    graph = {
        name: {n for i in imports(path) if (n := module_of(i, names))}
        for name, path in names.items()
    }

    while leaves := [name for name, needs in graph.items() if not (needs - {name}) & set(graph)]:
        for name in leaves:
            del graph[name]

    assert not graph, f"a cycle among {sorted(graph)}"


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_of(imported: str, names: dict[str, Path]) -> str | None:
    """The module that ``from a import b`` reads: a.b where that is a module, else a."""
    if imported in names:
        return imported
    parent = imported.rpartition(".")[0]
    return parent if parent in names else None


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_knows_no_file_no_clock_no_log_and_no_thread(room: str) -> None:
    for path in sources(room):
        place = str(path.relative_to(PACKAGE))
        used = {i.split(".")[0] for i in imports(path)} & FORBIDDEN
        assert used <= {module for file, module in ALLOWED if file == place}, place


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_opens_prints_and_draws_nothing_by_itself(room: str) -> None:
    for path in sources(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"open", "print", "input"}, f"{path}: {name}"
                assert not name.startswith("np.random.") or name == "np.random.default_rng"
                assert name not in {"torch.manual_seed", "np.random.seed"}


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("torch", {"meta", "meta_trainer"}),
        ("numba", {"learner"}),
        ("kafka", {"backends"}),
        ("river", {"learner", "evaluation", "compat"}),
        ("prometheus_client", {"backends"}),
        ("grafana_foundation_sdk", {"backends"}),
        ("sqlite3", {"backends"}),
    ],
)
def test_a_heavy_library_is_imported_only_where_it_belongs(library: str, rooms: set[str]) -> None:
    users = {room_of(p) for p in sources() if any(i.split(".")[0] == library for i in imports(p))}

    assert users <= rooms


@pytest.mark.parametrize("room", ["learner", "worker", "serving", "jobs", "doctor"])
def test_what_the_worker_and_its_helpers_reach_at_a_start_imports_no_torch(room: str) -> None:
    names = {dotted(path): path for path in sources()}
    reached, todo = set(), [dotted(path) for path in sources(room)]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += [n for i in imports(names[name], late=False) if (n := module_of(i, names))]

    for name in reached:
        assert "torch" not in {i.split(".")[0] for i in imports(names[name], late=False)}, name


@pytest.mark.parametrize(
    "path",
    [p for p in sources() if room_of(p) != "cli" and p.name not in LATE],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_imports_stand_at_the_top_of_a_file(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef | ast.ClassDef | ast.If):
            for node in ast.walk(scope):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    pytest.fail(f"{path}:{node.lineno}: a hidden cycle, or a hidden cost")
