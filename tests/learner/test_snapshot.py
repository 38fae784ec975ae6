"""The durable form: what is in it, what is refused, and what a barrier writes again."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streammaml.config import Config
from streammaml.errors import DamagedError, IncompatibleError, InitializationError
from streammaml.events import Label
from streammaml.learner import (
    Learner,
    describe_records,
    description_of,
    differences,
    fingerprint_of,
)
from streammaml.learner.snapshot import Format, context_of, key_of
from streammaml.sealed import seal, unseal
from tests.learner.build import (
    Stream,
    make_config,
    make_initialization,
    make_learner,
    make_stream,
    play,
    row_of,
)
from tests.learner.golden import CONFIGS, NAMES, case_of, values_of
from tests.learner.shelf import DictShelf, advance, with_times
from tests.learner.test_online import NUMBERS

MULTIPLIER = 6364136223846793005


def stored(learner: Learner, shelf: DictShelf) -> dict[bytes, bytes | None]:
    """A barrier; what it wrote."""
    items = dict(learner.snapshot())
    shelf.barrier(items.items())
    learner.mark()
    return items


def events_of(names: str, seed: int = 7) -> Stream:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(names), 2)).astype(np.float32)
    return Stream(list(names), x, rng.integers(0, 2, len(names)).astype(float))


# --- what must agree ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"hidden": [4]}, "network: [4, 4, 2] there, [4, 8, 8, 2] here"),
        ({"network": "linear"}, "network: [4, 2] there"),
        ({"support_size": 33}, "support_size: 33 there, 32 here"),
        ({"baseline_rate": 0.1}, "baseline: true there, false here"),
        ({"detector": {"name": "ADWIN"}}, 'detector: "ADWIN" there, "compiled" here'),
        ({"classes": 0}, 'task: "regression" there, "classification" here'),
        ({"classes": 3}, 'classes: ["c0", "c1", "c2"] there'),
        ({"width": 3}, 'features: [["f0", "number", []], ["f1"'),
    ],
)
def test_what_the_bytes_mean_has_a_fingerprint_and_a_readable_form(
    change: dict[str, Any], line: str
) -> None:
    ours, theirs = make_config(), make_config(**change)

    found = differences(json.loads(json.dumps(description_of(theirs))), description_of(ours))

    assert any(line in text for text in found), found
    assert fingerprint_of(theirs) != fingerprint_of(ours)
    assert len(fingerprint_of(ours)) == 8


def test_a_setting_that_changes_no_meaning_keeps_the_fingerprint() -> None:
    ours = make_config(baseline_rate=0.1)
    theirs = make_config(
        baseline_rate=0.2, warmup=[2], inner_steps=3, clip_norm=1.0, max_contexts=5, seed=4
    )

    assert fingerprint_of(theirs) == fingerprint_of(ours)
    assert differences(description_of(theirs), description_of(ours)) == []


def test_a_key_gives_its_context_back_whatever_it_is_called() -> None:
    for context in ("a", "", "c/a", "@stream", "店\x00\n", "\ud800"):
        assert context_of(key_of(b"w/", context)) == context


# --- size --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("episodes", "ring", "slot"), [(False, 32, 18), (True, 48, 26)])
def test_a_light_part_is_short_and_grows_with_the_ring(
    episodes: bool, ring: int, slot: int
) -> None:
    config = make_config(width=4, network="linear")
    config = Config.build(config.model_dump(), {"episodes": {"enabled": episodes}})
    learner, shelf = make_learner(config), DictShelf()
    one = make_stream(1, 1, contexts=1, width=4)
    play(learner, one)

    first = stored(learner, shelf)
    play(learner, make_stream(1, 100, contexts=1, width=4))
    full = stored(learner, shelf)

    key = key_of(b"c/", one.contexts[0])
    assert len(first[key] or b"") == 16 + 89 + 96 + slot
    assert len(full[key] or b"") == 16 + 89 + 96 + ring * slot == Format(config).largest
    assert len(full[key_of(b"w/", one.contexts[0])] or b"") == 16 + 4 * 18


# --- what a barrier writes ---------------------------------------------------------------------


def test_only_what_changed_is_written_again() -> None:
    config = make_config(warmup=[2], refresh_every=0)
    shelf = DictShelf()
    learner = Learner(config, make_initialization(config), shelf)
    play(learner, events_of("aab"))

    first = stored(learner, shelf)
    nothing = stored(learner, shelf)
    play(learner, events_of("ab"))
    second = stored(learner, shelf)

    assert set(first) == {b"c/a", b"c/b", b"w/a", b"@init/0", b"@stream"}
    assert set(nothing) == {b"@stream"}
    assert set(second) == {b"c/a", b"c/b", b"w/b", b"@stream"}
    assert nothing[b"@stream"] == first[b"@stream"]


def test_an_initialization_is_written_once_and_a_snapshot_changes_nothing() -> None:
    config = make_config()
    learner, shelf = make_learner(config), DictShelf()
    assert learner.snapshot() == learner.snapshot()
    assert b"@init/0" in dict(learner.snapshot())
    stored(learner, shelf)

    learner.swap(replace(make_initialization(config, seed=6), version=7))
    play(learner, events_of("a"))
    later = stored(learner, shelf)

    assert set(later) == {b"c/a", b"@init/7", b"@init/0", b"@stream"}
    assert later[b"@init/0"] is None
    assert set(stored(learner, shelf)) == {b"@stream"}


def test_weights_that_fell_back_to_theta_are_deleted() -> None:
    config = make_config(warmup=[2], refresh_every=0)
    shelf = DictShelf()
    learner = Learner(config, make_initialization(config), shelf)
    play(learner, events_of("aa"))
    stored(learner, shelf)
    assert b"w/a" in shelf.durable
    learner._contexts.fast[0] = np.nan

    play(learner, events_of("a"))
    written = stored(learner, shelf)

    assert written[b"w/a"] is None
    again = Learner(config, make_initialization(config), shelf)
    again.restore(shelf.durable)
    after = play(again, events_of("a", seed=8))
    expected = play(learner, events_of("a", seed=8))
    assert after["predictions"].tobytes() == expected["predictions"].tobytes()


def test_what_happens_between_a_snapshot_and_its_mark_is_written_by_the_next() -> None:
    config = make_config(warmup=[2])
    learner, shelf = make_learner(config), DictShelf()
    play(learner, events_of("ab"))
    shelf.barrier(learner.snapshot())

    play(learner, events_of("ac"))
    learner.mark()

    items = dict(learner.snapshot())
    assert items.pop(b"w/c") is None  # what was written of this row is not known: once too often
    assert set(items) == {b"c/a", b"c/c", b"w/a", b"@stream"}
    assert learner.changed_bytes == 2 * learner._form.largest + learner.parameter_bytes // 16 + 16


def test_the_bytes_that_changed_are_estimated_from_above_and_not_by_much() -> None:
    config = make_config(support_size=4, warmup=[2, 4], baseline_rate=0.1)
    shelf = DictShelf()
    learner = Learner(config, make_initialization(config), shelf)
    assert learner.changed_bytes == 0
    for seed in range(4):
        play(learner, make_stream(seed, 800, contexts=20))
        items = dict(learner.snapshot())
        real = sum(len(value or b"") for key, value in items.items() if key[:1] != b"@")

        assert real <= learner.changed_bytes <= 1.05 * real
        stored(learner, shelf)
        assert learner.changed_bytes == 0


def test_a_ledger_counts_and_hashes_the_offsets_of_a_context() -> None:
    config = make_config(max_contexts=2)
    log = with_times(make_stream(3, 200, contexts=5, unlabelled=0.3), 3)
    shelf = DictShelf()
    learner = Learner(config, make_initialization(config), shelf)

    advance(learner, log, 0, 200, [30, 60, 61])

    assert learner.ledger("nobody") is None
    for context in set(log.stream.contexts):
        own = np.array(log.stream.contexts) == context
        offsets = log.offsets[own].tolist()
        rolling = 0
        for offset in offsets:
            rolling = (rolling * MULTIPLIER + offset + 1) % 2**64
        (signed,) = struct.unpack("<q", struct.pack("<Q", rolling))
        assert learner.ledger(context) == (len(offsets), offsets[-1], signed)


# --- restoring ---------------------------------------------------------------------------------


def test_nothing_stored_is_nothing_restored() -> None:
    learner = make_learner(make_config())

    learner.restore({})

    assert (learner.version, learner.events, len(learner)) == (0, 0, 0)


def test_the_initialization_in_use_is_the_one_that_was_until_it_is_swapped() -> None:
    config = make_config()
    old = replace(make_initialization(config, seed=5), version=3)
    new = replace(make_initialization(config, seed=6), version=4)
    shelf = DictShelf()
    stored(Learner(config, old, shelf), shelf)

    learner = Learner(config, new, shelf)
    learner.restore(shelf.durable)

    assert learner.version == 3
    assert learner.same_initialization(replace(old, notes={"other": "notes"}))
    assert not learner.same_initialization(new)
    learner.swap(new)
    assert learner.version == 4
    assert learner.same_initialization(new)


@pytest.mark.parametrize("restored", [False, True])
def test_other_numbers_under_the_version_in_use_are_refused(restored: bool) -> None:
    config = make_config()
    one = replace(make_initialization(config, seed=5), version=3)
    other = replace(make_initialization(config, seed=6), version=3)
    shelf = DictShelf()
    learner = Learner(config, replace(other, version=4), shelf)
    learner.swap(one)
    if restored:
        stored(learner, shelf)
        learner = Learner(config, other, shelf)
        learner.restore(shelf.durable)

    assert not learner.same_initialization(other)
    with pytest.raises(InitializationError, match=r"as version 3: .*a version of its own"):
        learner.swap(other)
    assert learner.version == 3
    learner.swap(replace(other, version=4))
    assert learner.version == 4


def test_an_initialization_with_another_number_of_inner_steps_is_restored() -> None:
    shelf = DictShelf()
    before = make_config(inner_steps=3)
    stored(Learner(before, make_initialization(before), shelf), shelf)
    after = make_config(inner_steps=5)
    learner = Learner(after, replace(make_initialization(after), version=1), shelf)

    learner.restore(shelf.durable)

    assert learner.same_initialization(make_initialization(before))
    play(learner, events_of("aaaa"))


def test_without_the_initialization_that_is_in_use_the_state_is_damaged() -> None:
    case = case_of("mlp")
    values = values_of(case)
    del values[b"@init/7"]

    with pytest.raises(DamagedError, match="version 7 is in use"):
        Learner(case.config, case.initialization).restore(values)


def test_without_its_weights_a_context_is_damaged() -> None:
    case = case_of("mlp")
    values = values_of(case)
    heavy = key_of(b"w/", NAMES[1])
    shelf = DictShelf()
    shelf.durable = {k: v for k, v in values.items() if k != heavy}
    learner = Learner(case.config, case.initialization, shelf)
    learner.restore(shelf.durable)

    with pytest.raises(DamagedError, match="there is no"):
        learner._memory.admit([NAMES[1]], 0)


# --- damage ------------------------------------------------------------------------------------


def read_all(config: Config, values: dict[bytes, bytes]) -> list[dict[str, Any] | None]:
    case_shelf = DictShelf()
    case_shelf.durable = values
    learner = Learner(config, make_initialization(config), case_shelf)
    learner.restore({k: v for k, v in values.items() if k[:1] == b"@"})
    return [learner.describe(name) for name in NAMES]


@pytest.mark.parametrize("name", CONFIGS)
def test_any_damage_is_found_or_is_none(name: str) -> None:
    case = case_of(name)
    values = values_of(case)
    rng = np.random.default_rng(11)
    keys = sorted(values)
    whole = read_all(case.config, values)
    assert None not in whole
    for _ in range(500):
        key = keys[int(rng.integers(len(keys)))]
        bad = bytearray(values[key])
        if rng.random() < 0.2:
            bad = bad[: int(rng.integers(len(bad)))]
        else:
            bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))

        with pytest.raises(DamagedError):
            read_all(case.config, {**values, key: bytes(bad)})


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_that_are_whole_but_wrong_reach_no_array(name: str) -> None:
    """Flips under a right checksum: refused, or such that the learner can go on with them."""
    case = case_of(name)
    values = values_of(case)
    fingerprint = fingerprint_of(case.config)
    rng = np.random.default_rng(12)
    keys = [key for key in sorted(values) if not key.startswith(b"@init")]
    stream = make_stream(5, 12, width=len(case.config.features), classes=2)
    labels = stream.y % 2 if case.config.label.task == "classification" else stream.y
    stream = replace(stream, contexts=[NAMES[i % 3] for i in range(12)], y=labels)
    refused = 0
    for _ in range(300):
        key = keys[int(rng.integers(len(keys)))]
        body = bytearray(unseal(key, fingerprint, values[key]))
        for _ in range(int(rng.integers(1, 4))):
            body[int(rng.integers(len(body)))] = int(rng.integers(256))
        shelf = DictShelf()
        shelf.durable = {**values, key: seal(key, fingerprint, bytes(body))}
        learner = Learner(case.config, case.initialization, shelf)
        try:
            learner.restore(shelf.durable)
            decisions = play(learner, stream)
        except DamagedError:
            refused += 1
        else:
            assert np.isfinite(decisions["predictions"]).all()
            assert np.isfinite(learner._contexts.fast).all()
    assert refused > 50


BAD_FIELDS = [
    ("labels", -1),
    ("labels", 2),
    ("labels", 2**62),
    ("segment", -1),
    ("segment", 2),
    ("version", -1),
    ("at_init", 2),
    ("ledger", 0),
    ("seen", math.inf),
    ("detector", math.nan),
    ("x_count", -1),
    ("x_mean", math.inf),
    ("x_m2", -0.5),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_number_that_cannot_be_is_refused(field: str, value: float) -> None:
    case = case_of("mlp")
    form = case.learner._form
    record = form.gather(case.learner._contexts, np.array([0]))
    record[field] = value
    key = key_of(b"c/", NAMES[0])
    body = record.tobytes()[: form._size(1)]

    with pytest.raises(DamagedError, match="shop-1"):
        form.unpack([key], [seal(key, form.fingerprint, body)])


@pytest.mark.parametrize(
    ("name", "part", "value"),
    [
        ("mlp", "y", 3),
        ("mlp", "x", math.inf),
        ("mlp", "offset", -3),
        ("regression", "y", math.nan),
        ("regression", "error_scale", 0.0),
        ("baseline", "baseline", math.nan),
    ],
)
def test_an_example_or_a_weight_that_cannot_be_is_refused(
    name: str, part: str, value: float
) -> None:
    case = case_of(name)
    form = case.learner._form
    record = form.gather(case.learner._contexts, np.array([3]))
    if part in ("x", "y", "offset"):
        record["support"][part][0, -1] = value
    else:
        record[part] = value
    key = key_of(b"c/", NAMES[3])

    with pytest.raises(DamagedError, match="a number in it cannot be"):
        form.unpack([key], [seal(key, form.fingerprint, record.tobytes())])


def test_weights_that_are_not_finite_are_refused() -> None:
    form = case_of("mlp").learner._form
    weights = np.zeros(form.parameters, np.float32)
    weights[3] = np.inf

    for body in (weights.tobytes(), weights[:-1].tobytes()):
        with pytest.raises(DamagedError):
            form.unpack_weights([b"w/a"], [seal(b"w/a", form.fingerprint, body)])


def test_classes_that_cannot_be_are_refused() -> None:
    case = case_of("open")
    learner, form = case.learner, case.learner._form
    bad: list[list[Label]] = [["a"], list("abcdef"), ["1", 1, "b", "c", "d"]]
    for classes in bad:
        value = form.pack_stream(learner._stream, 7, classes)
        with pytest.raises(DamagedError):
            form.unpack_stream(value, learner._stream)
    whole = bytes(unseal(b"@stream", form.fingerprint, form.pack_stream(learner._stream, 7, [])))
    for text in (b'{"a":1}', b"[[]]", b"[", b'[null,"a"]'):
        value = seal(b"@stream", form.fingerprint, whole[:-2] + text)
        with pytest.raises(DamagedError):
            form.unpack_stream(value, learner._stream)


@pytest.mark.parametrize("other", [n for n in CONFIGS if n != "mlp"])
def test_another_models_values_are_refused_as_such(other: str) -> None:
    values = values_of(case_of("mlp"))
    config = case_of(other).config
    shelf = DictShelf()
    shelf.durable = values
    learner = Learner(config, make_initialization(config), shelf)

    with pytest.raises(IncompatibleError, match="another model"):
        learner.restore(values)
    with pytest.raises(IncompatibleError, match="another model"):
        learner._memory.admit(list(NAMES), 0)


# --- describing --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_context_is_described_alike_from_memory_shelf_and_records(name: str) -> None:
    case = case_of(name)
    values = values_of(case)
    case.shelf.durable = values
    away = Learner(case.config, case.initialization, case.shelf)
    away.restore(values)

    for context in NAMES:
        here = case.learner.describe(context)

        assert here == away.describe(context) == describe_records(case.config, context, values)
        json.dumps(here, allow_nan=False)
        assert here is not None
        sizes = here["stored_bytes"]
        for kind, part in ((b"c/", "light"), (b"w/", "weights"), (b"d/", "detector")):
            assert sizes[part] == len(values.get(key_of(kind, context), b""))
    assert case.learner.describe("nobody") is None
    assert describe_records(case.config, "nobody", values) is None
    assert len(away) == 0


def test_a_description_is_in_the_users_words() -> None:
    case = case_of("open")

    described = case.learner.describe(NAMES[1])

    assert described is not None
    assert described["events"] == 7
    assert described["last_offset"] == 2**40
    assert described["adapted"]
    # the support set of a context with six labels: the newest four
    assert [example["label"] for example in described["support"]] == ["ja", 1.5, "ja", 2]
    assert described["support"][0]["features"] == {"f0": 0.5 + 0.625, "f1": None}
    assert described["features"]["f1"]["mean"] == 5 / 8
    weights = row_of(case.learner, NAMES[1])["fast"].astype(float)
    assert described["weights"]["norm"] == pytest.approx(np.linalg.norm(weights))
    new = case.learner.describe(NAMES[0])
    assert new is not None
    assert new["support"] == [{"features": {"f0": None, "f1": -0.25}, "label": 1.5}]
    assert (new["adapted"], new["initialization"]) == (False, 7)


def test_categories_are_described_by_name() -> None:
    config = Config.build(
        {
            "features": [
                {"name": "promo", "type": "boolean"},
                {"name": "day", "type": "category", "categories": ["mon", "tue"]},
            ],
            "label": {"classes": ["no", "yes"]},
        }
    )
    x = np.array([[1, 0, 1], [0, 0, 0], [np.nan, np.nan, np.nan]], np.float32)
    learner = make_learner(config)
    play(learner, Stream(["a"] * 3, x, np.array([0.0, 1.0, 1.0])))

    described = learner.describe("a")

    assert described is not None
    assert described["support"] == [
        {"features": {"promo": True, "day": "tue"}, "label": "no"},
        {"features": {"promo": False, "day": "(unknown)"}, "label": "yes"},
        {"features": {"promo": None, "day": None}, "label": "yes"},
    ]
    assert list(described["features"]) == ["promo", "day=mon", "day=tue"]


# --- safety ------------------------------------------------------------------------------------


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(data=st.data())
def test_nothing_that_is_not_finite_is_ever_stored_or_served(data: st.DataObject) -> None:
    classes = data.draw(st.sampled_from([0, 3]))
    config = make_config(
        classes=classes,
        hidden=[4],
        network=data.draw(st.sampled_from(["mlp", "linear"])),
        warmup=[1, 2, 3],
        support_size=4,
        after_drift=2,
        refresh_every=2,
        held_out_test=data.draw(st.booleans()),
        baseline_rate=data.draw(st.sampled_from([0.0, 0.1, 1e30])),
        max_contexts=data.draw(st.sampled_from([1, 2, 9])),
        detector={"parameters": {"min_instances": 2, "threshold": 0.1}},
    )
    start = make_initialization(
        config,
        data.draw(st.integers(0, 99)),
        scale=data.draw(st.sampled_from([0.0, 1e-30, 1.0, 1e4, 1e19, 3e37])),
        rate=data.draw(st.sampled_from([1e-30, 0.1, 1e3, 1e10])),
    )
    count = data.draw(st.integers(1, 25))
    x = [[data.draw(NUMBERS), data.draw(NUMBERS)] for _ in range(count)]
    labels = st.sampled_from([0.0, 1.0, 2.0]) if classes else st.floats(-1e12, 1e12)
    y = [data.draw(st.one_of(labels, st.just(math.nan))) for _ in range(count)]
    names = [data.draw(st.sampled_from("abc")) for _ in range(count)]
    stream = Stream(names, np.array(x, np.float32), np.array(y))
    shelf = DictShelf()
    learner = Learner(config, start, shelf)
    form = learner._form
    for first in range(0, count, 5):
        part = replace(
            stream,
            contexts=names[first : first + 5],
            x=stream.x[first : first + 5],
            y=stream.y[first : first + 5],
        )

        decisions = play(learner, part)

        assert np.isfinite(decisions["predictions"]).all()
        stored(learner, shelf)
    # reading checks every number
    light = [key for key in shelf.durable if key[:2] == b"c/"]
    heavy = [key for key in shelf.durable if key[:2] == b"w/"]
    form.unpack(light, [shelf.durable[key] for key in light])
    form.unpack_weights(heavy, [shelf.durable[key] for key in heavy])
    again = Learner(config, start, shelf)
    again.restore(shelf.durable)
    assert {again.ledger(name) for name in set(names)} == {learner.ledger(n) for n in set(names)}
