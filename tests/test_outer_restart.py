"""What the outer loop knows after a restart of what it was trained on."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from streammaml.meta.episodes import Held
from streammaml.meta.trainer_state import decode_state, encode_state
from streammaml.outer import OuterJob
from tests.outer_rig import Rig


def held(job: OuterJob) -> Held:
    found = job._reservoir.held_out(10_000)
    assert found is not None
    return found


def lived(rig: Rig) -> OuterJob:
    job = rig.job()
    job.once(threading.Event())
    return job


def test_the_next_start_judges_by_the_same_episodes_and_newer_ones(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.produce(contexts=10)
    before = held(lived(rig))

    same = held(lived(rig))
    rig.produce(contexts=40, events=60, seed=2)
    more = held(lived(rig))

    assert torch.equal(before.episodes.query.inputs, same.episodes.query.inputs)
    assert len(more.contexts) > len(before.contexts)


def test_a_loop_that_ends_as_it_has_published_knows_what_that_was_trained_on(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.produce()
    files: list[bytes] = []

    def keep(name: str) -> None:
        if name == "publish":
            files.extend(path.read_bytes() for path in tmp_path.glob("outer-*/*"))

    rig.outside.step = keep
    job = lived(rig)

    (file,) = files
    state = decode_state(file, rig.current.spec)
    assert state.cuts is not None
    assert state.cuts.tolist() == job._reservoir.cuts().tolist()


def test_a_checkpoint_without_cuts_resumes_the_optimizer_but_is_no_witness(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.produce()
    rig.once()
    (path,) = tmp_path.glob("outer-*/*")
    spec = rig.current.spec
    state = decode_state(path.read_bytes(), spec)
    path.write_bytes(encode_state(state._replace(cuts=None), spec))

    job = rig.job()
    doubted = job.once(threading.Event())
    rig.produce(events=440)
    later = rig.once()

    assert job._trainer is not None
    assert job._trainer._states["network"].taken == 10
    assert (doubted.result, later.result) == ("skipped", "published")


def test_a_loop_without_a_folder_judges_by_what_came_after_the_current_version(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path).other()
    rig.produce()

    runs = [rig.once(), rig.once()]
    rig.produce(events=440)
    runs.append(rig.once())

    assert [run.result for run in runs] == ["published", "skipped", "published"]
