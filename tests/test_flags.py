"""What flags say: durations, versions, and where an initialization comes from."""

from __future__ import annotations

import pytest

from streammaml.flags import seconds_of, source_of, version_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20s", 20), ("5m", 300), ("1h", 3600), ("1d", 86400), ("90", 90), ("0.5s", 0.5)],
)
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "v5", "5x", "-5s", "0s", "1e3s", "9" * 400, "m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration: 20s, 5m and 1h are"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("v12@other", (12, "other")),
        ("current@other", (None, "other")),
        ("v12", (12, "")),
        ("current", (None, "")),
    ],
)
def test_a_source_is_a_version_and_perhaps_a_topic(
    text: str, source: tuple[int | None, str]
) -> None:
    assert source_of(text) == source


def test_a_version_may_be_written_with_its_v() -> None:
    assert (version_of("v12"), version_of("0")) == (12, 0)
    for text in ("", "v", "v-1", "12@other", "v" + "9" * 19):
        with pytest.raises(ValueError, match="is no version: v12 is one"):
            version_of(text)
