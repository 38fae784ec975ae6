"""The initialization: its shape, its drawing, its bytes, and what is refused before it is used."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from streammaml.config import Config, schema_fingerprint, spec_of
from streammaml.errors import InitializationError
from streammaml.events import Float32s, Label, Task
from streammaml.initialization import (
    MAX_BYTES,
    Initialization,
    Spec,
    arranged,
    check_fits,
    decode,
    draw,
    effective_rates,
    encode,
    norms,
)

SPEC = Spec(task=Task.CLASSIFICATION, sizes=(6, 5, 3), steps=4, schema="s")


def make_tensors(**changed: Float32s) -> dict[str, Float32s]:
    return {**draw(SPEC, seed=1).tensors, **changed}


def test_the_shape_of_a_model_follows_from_its_configuration() -> None:
    config = Config.build(
        {
            "features": [
                {"name": "a"},
                {"name": "b", "type": "category", "categories": ["x", "y", "z"]},
                {"name": "c", "type": "boolean"},
            ],
            "label": {"classes": ["p", "q"]},
            "learner": {"hidden": [7], "inner_steps": 2},
        }
    )

    spec = spec_of(config)

    assert spec.sizes == (10, 7, 2)
    assert (spec.task, spec.steps, spec.layers) == (Task.CLASSIFICATION, 2, 2)
    assert spec.shapes() == {
        "0.weight": (10, 7),
        "0.bias": (7,),
        "1.weight": (7, 2),
        "1.bias": (2,),
    }


def test_a_linear_model_has_no_hidden_layer() -> None:
    layer = {"features": [{"name": "a"}], "learner": {"network": "linear"}}

    assert spec_of(Config.build(layer, {"label": {"task": "regression"}})).sizes == (2, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"features": [{"name": "b"}]},
        {"features": [{"name": "a", "type": "boolean"}]},
        {"label": {"classes": ["y", "x"]}},
        {"label": {"max_classes": 4}},
        {"label": {"task": "regression"}},
    ],
)
def test_the_fingerprint_of_the_schema_tells_what_the_numbers_mean(change: dict[str, Any]) -> None:
    base = Config.build({"features": [{"name": "a"}]})
    other = Config.build({"features": [{"name": "a"}]}, change)
    unrelated = Config.build({"features": [{"name": "a"}]}, {"web": {"port": 1}})

    assert schema_fingerprint(other) != schema_fingerprint(base)
    assert schema_fingerprint(unrelated) == schema_fingerprint(base)


def test_a_drawn_initialization_is_the_same_everywhere() -> None:
    one, same, other = draw(SPEC, 3), draw(SPEC, 3), draw(SPEC, 4)

    assert one.theta().tobytes() == same.theta().tobytes()
    assert one.theta().tobytes() != other.theta().tobytes()
    first = np.random.default_rng(3).standard_normal((6, 5)) * math.sqrt(2 / 6)
    np.testing.assert_array_equal(one.tensors["0.weight"], first.astype(np.float32))


def test_a_drawn_initialization_is_he_normal_with_a_small_last_layer() -> None:
    drawn = draw(replace(SPEC, sizes=(400, 300, 200)), seed=0, rate=0.2)

    np.testing.assert_allclose(drawn.tensors["0.weight"].std(), math.sqrt(2 / 400), rtol=0.01)
    np.testing.assert_allclose(drawn.tensors["1.weight"].std(), 0.3 * math.sqrt(2 / 300), rtol=0.01)
    assert not drawn.tensors["0.bias"].any()
    assert not drawn.tensors["1.bias"].any()
    assert (drawn.tensors["rates"] == np.float32(0.2)).all()
    assert drawn.tensors["rates"].shape == (4, 4)


def test_theta_is_every_weight_and_bias_in_order() -> None:
    tensors = make_tensors(**{"0.bias": np.full(5, 7, np.float32)})

    theta = Initialization(spec=SPEC, tensors=tensors).theta()

    assert theta.shape == (6 * 5 + 5 + 5 * 3 + 3,)
    assert theta[30:35].tolist() == [7] * 5
    np.testing.assert_array_equal(theta[35:50], tensors["1.weight"].ravel())
    assert theta.flags.c_contiguous


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"0.bias": np.zeros(4, np.float32)}, r"0.bias: expected float32 \(5,\)"),
        ({"0.bias": np.zeros(5)}, "found float64"),
        ({"0.bias": np.full(5, np.nan, np.float32)}, "not finite"),
        ({"rates": np.full((4, 4), np.inf, np.float32)}, "rates holds a value that is not finite"),
        ({"rates": np.zeros((3, 4), np.float32)}, "rates: expected"),
        ({"extra": np.zeros(1, np.float32)}, "expected the tensors"),
    ],
)
def test_tensors_that_are_not_right_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InitializationError, match=message):
        Initialization(spec=SPEC, tensors=make_tensors(**changed))


def test_a_missing_tensor_is_refused() -> None:
    tensors = make_tensors()
    del tensors["1.bias"]

    with pytest.raises(InitializationError, match="expected the tensors"):
        Initialization(spec=SPEC, tensors=tensors)


def test_bytes_and_back_is_the_same_initialization() -> None:
    drawn = draw(SPEC, 3, classes=("a", 3, True))
    original = replace(drawn, version=12, parent=11, notes={"gate": "passed, θ"})

    decoded = decode(encode(original))

    assert decoded.spec == original.spec
    assert (decoded.version, decoded.parent) == (12, 11)
    assert decoded.classes == ("a", 3, True)
    assert [type(c) for c in decoded.classes] == [str, int, bool]
    assert decoded.notes == {"gate": "passed, θ"}
    for name, tensor in original.tensors.items():
        assert decoded.tensors[name].tobytes() == tensor.tobytes()
        assert decoded.tensors[name].dtype == np.float32


HEADER = {
    "task": "classification",
    "sizes": [6, 5, 3],
    "steps": 4,
    "schema": "s",
    "version": 1,
    "parent": 0,
    "classes": [],
    "notes": {},
}


def packed(**changed: object) -> bytes:
    header = {k: v for k, v in {**HEADER, **changed}.items() if v is not None}
    return save(make_tensors(), metadata={"streammaml": json.dumps(header)})


def test_a_header_written_by_hand_is_read() -> None:
    assert decode(packed()).version == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 200,
        b"not safetensors at all",
        encode(draw(SPEC, 1))[:-10],
        encode(draw(SPEC, 1))[:40],
        save(make_tensors()),
        save(make_tensors(), metadata={"other": "x"}),
        save(make_tensors(), metadata={"streammaml": "[]"}),
        save(make_tensors(), metadata={"streammaml": "{"}),
        packed(task="ranking"),
        packed(sizes=[6, 5, 4]),
        packed(sizes=[]),
        packed(sizes="abc"),
        packed(steps=None),
        packed(notes=[1]),
        packed(classes=None),
        packed(classes=["a", "b", "c", "d"]),
        packed(classes=["3", 3]),
        packed(classes=[None]),
        packed(classes=[["a"]]),
        packed(classes=[math.inf]),
    ],
)
def test_bytes_that_are_not_an_initialization_are_refused(payload: bytes) -> None:
    with pytest.raises(InitializationError):
        decode(payload)


def test_more_bytes_than_the_cap_are_not_even_read() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_BYTES + 1

    with pytest.raises(InitializationError, match="more than the cap"):
        decode(Huge())


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"schema": "t"}, "its features or classes differ"),
        ({"sizes": (6, 4, 3)}, r"its network is \(6, 5, 3\), not \(6, 4, 3\)"),
        ({"steps": 5}, "it has 4 inner steps, not 5"),
    ],
)
def test_an_initialization_for_another_model_is_refused_with_the_difference(
    change: dict[str, Any], difference: str
) -> None:
    initialization = draw(SPEC, 1)
    check_fits(initialization, SPEC)

    with pytest.raises(InitializationError, match=f"{difference}; train one with"):
        check_fits(initialization, replace(SPEC, **change))


def test_two_specs_with_one_fingerprint_are_equal() -> None:
    assert SPEC.fingerprint == replace(SPEC).fingerprint
    others = [{"steps": 5}, {"schema": "t"}, {"sizes": (6, 3)}, {"task": Task.REGRESSION}]
    assert len({replace(SPEC, **o).fingerprint for o in others} | {SPEC.fingerprint}) == 5  # type: ignore[arg-type]


# --- outputs in another order, and sizes ---------------------------------------------------------


def make_whole(classes: tuple[Label, ...], outputs: int = 4) -> Initialization:
    """All optional tensors; every column of the outputs is filled with its slot."""
    spec = replace(SPEC, sizes=(6, 5, outputs))
    slots = np.arange(outputs, dtype=np.float32)
    tensors = dict(draw(spec, 1).tensors)
    tensors |= {k: np.ones(shape, np.float32) for k, shape in spec.optional_shapes().items()}
    for name in ("1.weight", "1.bias", "f/head", "g/head"):
        tensors[name] = np.zeros_like(tensors[name]) + slots
    tensors["parameter_rates"][35:] = np.tile(slots, 6)
    return Initialization(spec=spec, tensors=tensors, version=9, parent=3, classes=classes)


@pytest.mark.parametrize(
    ("own", "here", "order"),
    [
        (("a", "b"), ("a", "b"), [0, 1, 2, 3]),
        (("a", "b"), ("b", "a"), [1, 0, 2, 3]),
        (("a", 3), ("3", "z", "a"), [1, 2, 0, 3]),  # z takes one that is trained for no class
        (("a", "b", "c", "d"), ("d", "c", "b", "a"), [3, 2, 1, 0]),
        (("a", "b", "c"), ("w", "x", "c", "y"), [3, 0, 2, 1]),  # then those of a and b
        (("a", "b", "c"), (), [3, 0, 1, 2]),
        ((), ("b", "a"), [0, 1, 2, 3]),
    ],
)
def test_outputs_are_arranged_to_the_slots_of_others(
    own: tuple[Label, ...], here: tuple[Label, ...], order: list[int]
) -> None:
    original = make_whole(own)

    result = arranged(original, here)

    for name in ("1.weight", "1.bias", "f/head", "g/head"):
        columns = result.tensors[name].reshape(-1, 4)
        assert (columns == np.array(order)).all(), name
        assert result.tensors[name].flags.c_contiguous
    rates = result.tensors["parameter_rates"]
    assert (rates[:35] == 1).all()
    assert rates[35:].tolist() == order * 6
    for name in ("0.weight", "0.bias", "rates", "f/0.weight", "g/1.bias", "g/log_ridge"):
        assert result.tensors[name].tobytes() == original.tensors[name].tobytes()
    assert result.classes == (here if own else ())
    assert (result.version, result.parent, result.spec) == (9, 3, original.spec)


def test_classes_that_come_later_do_not_change_the_arrangement() -> None:
    original = make_whole(("a", "b"))

    before, after = (arranged(original, here) for here in (("b", "a"), ("b", "a", "x", "y")))

    for name, tensor in before.tensors.items():
        assert after.tensors[name].tobytes() == tensor.tobytes()


def test_the_norms_of_an_initialization_are_those_of_its_groups() -> None:
    whole, drawn = make_whole(("a",)), draw(SPEC, 1)

    found = norms(whole)

    assert set(found) == {"network", "rates", "f", "g"}
    np.testing.assert_allclose(found["network"], np.linalg.norm(whole.theta()), rtol=1e-6)
    assert set(norms(drawn)) == {"network", "rates"}
    scaled = replace(drawn, tensors={k: 100 * v for k, v in drawn.tensors.items()})
    np.testing.assert_allclose(norms(scaled)["network"] / norms(drawn)["network"], 100, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.02, 3.0])
def test_rates_count_by_the_steps_that_they_make(rate: float) -> None:
    drawn = draw(SPEC, 1, rate)
    moved = {
        **drawn.tensors,
        "rates": np.ones_like(drawn.tensors["rates"]),
        "parameter_rates": np.full(len(drawn.theta()), rate, np.float32),
    }

    found = norms(replace(drawn, tensors=moved))

    np.testing.assert_allclose(norms(drawn)["rates"], rate * math.sqrt(16), rtol=1e-6)
    np.testing.assert_allclose(found["rates"], norms(drawn)["rates"], rtol=1e-6)


def test_each_rate_meets_the_factors_of_its_own_tensor() -> None:
    drawn = draw(SPEC, 1, 0.5)
    sizes = [math.prod(shape) for shape in SPEC.shapes().values()]
    by_tensor = np.arange(1, len(sizes) + 1)
    factors = np.repeat(by_tensor, sizes).astype(np.float32)

    found = effective_rates(replace(drawn, tensors={**drawn.tensors, "parameter_rates": factors}))

    np.testing.assert_allclose(found, np.tile(0.5 * by_tensor, (SPEC.steps, 1)))
