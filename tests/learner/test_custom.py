"""A torch module in the compiled loop: its decisions, its state, and what it raises."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streammaml.config import Config, spec_of
from streammaml.errors import ConfigError, IncompatibleError
from streammaml.events import DriftLevel, Float32s, Result, Trigger
from streammaml.initialization import Initialization, Spec
from streammaml.learner import Learner
from streammaml.learner.kernels import network as passes
from streammaml.learner.kernels.callbacks import Callbacks
from streammaml.learner.snapshot import description_of, differences
from streammaml.learner.state import meta_of, new_scratch
from streammaml.meta.serving import TorchNetwork
from tests.learner import modules
from tests.learner.build import (
    Arrays,
    Stream,
    assert_same_bits,
    make_config,
    make_initialization,
    make_learner,
    make_stream,
    play,
    state_of,
)
from tests.learner.shelf import Partition, with_times
from tests.learner.test_network import make_case

EVENTS = 400


def with_module(config: Config, factory: str = "mlp") -> Config:
    return Config.build(config.model_dump(), {"learner": {"network": modules.PATH + factory}})


def torch_learner(
    config: Config, factory: str = "rich", initialization: Initialization | None = None
) -> Learner:
    config = with_module(config, factory)
    network = TorchNetwork(spec_of(config), config.learner.seed)
    return Learner(config, initialization or network.initial(0.1), network=network)


def of_torch(initialization: Initialization, spec: Spec) -> Initialization:
    """The same numbers for ``nn.Linear``, whose weights are [out, in]."""
    tensors: dict[str, Float32s] = {
        name: np.ascontiguousarray(tensor.T)
        for (name, _), tensor in zip(
            spec.parameters,
            (initialization.tensors[name] for name in initialization.spec.shapes()),
            strict=True,
        )
    }
    optional: Mapping[str, Float32s] = initialization.tensors
    return replace(initialization, spec=spec, tensors={**tensors, "rates": optional["rates"]})


# --- against the compiled network --------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"classes": 3},
        {"classes": 0, "baseline_rate": 0.05, "held_out_test": True},
        {"classes": 4, "open_classes": True, "max_contexts": 3},
        {"classes": 2, "detector": {"name": "ADWIN", "parameters": {"clock": 1, "delta": 0.3}}},
        {"classes": 2, "baseline_rate": 0.05, "detector": {"parameters": {"threshold": 2.0}}},
    ],
    ids=lambda s: "-".join(map(str, s)),
)
def test_a_module_like_the_compiled_network_decides_as_it_does(settings: dict[str, Any]) -> None:
    config = make_config(**settings)
    start = make_initialization(config)
    start.tensors["rates"][2, :4] = 0  # of one step, all but the last layer
    stream = make_stream(
        41, 600, contexts=2, classes=settings["classes"], missing=0.1, drift_every=150
    )

    expected = play(make_learner(config, start), stream)
    spec = spec_of(with_module(config))
    decisions = play(torch_learner(config, "mlp", of_torch(start, spec)), stream)

    assert decisions.keys() == expected.keys()
    for name, array in decisions.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert {Trigger.WARMUP, Trigger.SCHEDULE} <= set(decisions["triggers"].tolist())
    if "detector" in settings:
        assert DriftLevel.DRIFT in decisions["levels"]
    if "baseline_rate" in settings:
        apart = decisions["loss_baseline"] - decisions["loss_init"]
        assert np.nanmax(abs(apart)) > 0.1


@pytest.mark.parametrize("classes", [0, 5])
def test_the_gradient_is_that_of_the_compiled_passes(classes: int) -> None:
    case = make_case([8, 8], classes)
    theta, rows = case.initialization.theta(), 13
    expected = np.zeros_like(theta)
    passes.gradient(
        theta, case.meta, case.y, case.known, case.regression, rows, case.scratch, expected
    )
    spec = spec_of(with_module(make_config(width=3, classes=classes)))
    start = of_torch(case.initialization, spec)
    callbacks = Callbacks(TorchNetwork(spec, 0).passes(), spec)
    meta = meta_of(start, callbacks.addresses)
    scratch = new_scratch(meta, 32, 3)
    scratch.activations[0, :rows, :6] = case.scratch.activations[0, :rows, :6]

    found = np.full_like(theta, np.nan)
    passes.gradient(meta.theta, meta, case.y, case.known, case.regression, rows, scratch, found)

    callbacks.check()
    back, first = [], 0
    for _, shape in spec.parameters:
        size = int(np.prod(shape))
        back.append(found[first : first + size].reshape(shape).T.ravel())
        first += size
    np.testing.assert_allclose(np.concatenate(back), expected, rtol=1e-4, atol=1e-6)


# --- bits --------------------------------------------------------------------------------------


def make_played() -> tuple[Config, Stream]:
    config = make_config(classes=3, baseline_rate=0.05, max_contexts=5)
    stream = make_stream(
        7, EVENTS, contexts=8, classes=3, missing=0.1, unlabelled=0.1, drift_every=100
    )
    return config, stream


def test_any_slicing_gives_the_same_bits() -> None:
    config, stream = make_played()
    whole, sliced = torch_learner(config), torch_learner(config)

    decisions = play(whole, stream)
    in_slices = play(sliced, stream, list(range(0, EVENTS, 7)))

    assert_same_bits(in_slices, decisions)
    assert_same_bits(state_of(sliced), state_of(whole))
    assert decisions["evicted"] > 20
    assert not decisions["nonfinite"].any()
    adapted = decisions["predictions"] != decisions["initial"]
    assert adapted.any()


@pytest.mark.parametrize("detector", ["PageHinkley", "ADWIN"])
def test_stored_spilled_and_restored_it_goes_on_to_the_bit(detector: str) -> None:
    config, stream = make_played()
    config = with_module(
        Config.build(config.model_dump(), {"learner": {"detector": detector_of(detector)}}), "rich"
    )
    network = TorchNetwork(spec_of(config), 0)
    start, other = network.initial(0.1), replace(network.initial(0.2), version=7)
    log = with_times(stream, 3, {200: other})
    undisturbed = Partition(config, start, log, network)
    expected = undisturbed.play(EVENTS)
    disturbed = Partition(config, start, log, TorchNetwork(spec_of(config), 0))

    parts = []
    for place in (60, 130, 210, 300, EVENTS):
        parts += disturbed.play(place, [place - 30])
        disturbed.barrier()
        if place in (130, 300):
            disturbed.restart([place - 7])

    assert_same_bits(joined(parts), joined(expected))
    assert disturbed.everything() == undisturbed.everything()
    assert disturbed.shelf.spills > 20


def detector_of(name: str) -> dict[str, Any]:
    return {"name": name}


def joined(parts: list[tuple[int, Any]]) -> Arrays:
    return {
        name: np.concatenate([getattr(part.packed, name) for _, part in parts], axis=axis)
        for name, axis in (("probabilities", 1), ("numbers", 1), ("counts", 1), ("codes", 1))
    }


def test_two_partitions_in_two_threads_give_the_bits_of_one_after_the_other() -> None:
    config, stream = make_played()
    config = with_module(config, "rich")
    network = TorchNetwork(spec_of(config), 0)
    start = network.initial(0.1)
    streams = [stream, replace(stream, x=stream.x * 2)]
    expected = [play(Learner(config, start, network=network), s) for s in streams]
    learners = [Learner(config, start, network=network) for _ in streams]
    found: dict[int, Arrays] = {}
    begin = threading.Barrier(2, timeout=60)

    def work(place: int) -> None:
        begin.wait()
        found[place] = play(learners[place], streams[place], list(range(0, EVENTS, 50)))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    for place, decisions in enumerate(expected):
        assert_same_bits(found[place], decisions)
    assert expected[0]["predictions"].tobytes() != expected[1]["predictions"].tobytes()


def test_what_diverges_is_counted_and_nothing_is_raised() -> None:
    config = with_module(make_config(classes=3, baseline_rate=1e30), "mlp")
    network = TorchNetwork(spec_of(config), 0)
    learner = Learner(config, network.initial(1e30), network=network)

    decisions = play(learner, make_stream(7, 100, classes=3))

    assert Result.DIVERGED in decisions["results"]
    assert Result.ACCEPTED not in decisions["results"]
    assert np.isfinite(decisions["predictions"]).all()
    assert np.isfinite(learner._contexts.fast).all()


def test_another_initialization_is_tried_as_the_compiled_network_would() -> None:
    config = make_config(classes=3)
    start, other = make_initialization(config), make_initialization(config, seed=9)
    stream = make_stream(7, 300, contexts=8, classes=3)
    compiled = make_learner(config, start)
    spec = spec_of(with_module(config))
    learner = torch_learner(config, "mlp", of_torch(start, spec))
    for one in (compiled, learner):
        play(one, stream)

    expected = compiled.losses_of_segments(other, 8, 8)
    found = learner.losses_of_segments(of_torch(other, spec), 8, 8)

    assert expected.shape == (2, 8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# --- what it raises ----------------------------------------------------------------------------


def far_off(events: int = 40) -> Stream:
    """An ordinary stream whose last number but one is far below its scale."""
    stream = make_stream(3, events, contexts=1)
    stream.x[-2, 0] = -1e6
    return stream


@pytest.mark.parametrize("detector", [{}, {"name": "ADWIN"}])
def test_what_forward_raises_comes_out_of_the_step(detector: dict[str, Any]) -> None:
    learner = torch_learner(make_config(detector=detector), "touchy")
    stream = far_off()
    play(learner, stream.of(range(38)))

    with pytest.raises(ZeroDivisionError, match="too far off") as raised:
        play(learner, stream.of([38, 39]))

    assert raised.value.__notes__ == ["raised by learner.network, tests.learner.modules:touchy"]
    assert raised.traceback[-1].name == "forward"


def test_an_interrupt_in_forward_comes_out_too() -> None:
    learner = torch_learner(make_config(), "interrupted")

    with pytest.raises(KeyboardInterrupt):
        play(learner, far_off())


def test_what_one_learner_raises_is_no_other_ones() -> None:
    config = with_module(make_config(), "touchy")
    network = TorchNetwork(spec_of(config), 0)
    one, other = (Learner(config, network.initial(0.1), network=network) for _ in range(2))
    stream = far_off()

    with pytest.raises(ZeroDivisionError):
        play(one, stream)

    decisions = play(other, stream.of(range(38)))
    assert np.isfinite(decisions["predictions"]).all()


# --- which network -----------------------------------------------------------------------------


def test_a_learner_must_be_given_its_module() -> None:
    config = with_module(make_config())
    start = TorchNetwork(spec_of(config), 0).initial(0.1)

    with pytest.raises(ConfigError, match=r"learner\.network: tests.learner.modules:mlp"):
        Learner(config, start)


def test_stored_state_tells_networks_apart() -> None:
    linear = make_config(network="linear")
    ours, theirs = (description_of(with_module(linear, f)) for f in ("mlp", "rich"))
    config, stream = make_played()
    config = with_module(config, "rich")
    network = TorchNetwork(spec_of(config), 0)
    partition = Partition(config, network.initial(0.1), with_times(stream, 3), network)
    partition.play(50)
    partition.barrier()

    lines = differences(theirs, ours)

    assert [line.partition(":")[0] for line in lines] == ["network"]
    assert "tests.learner.modules:rich" in lines[0]
    assert description_of(linear)["network"] == [4, 2]
    with pytest.raises(IncompatibleError):
        make_learner(make_played()[0]).restore(partition.shelf.durable)
