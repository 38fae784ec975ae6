"""``streammaml outer --from FILE``: an initialization, or episodes, from a history file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import msgspec

from streammaml import initialization as initializations
from streammaml.backends.codec import EventDecoder
from streammaml.backends.files import Columns, read_events
from streammaml.backends.memory import MemoryRecord
from streammaml.config import Config
from streammaml.errors import InitializationError, InputError, RejectedError
from streammaml.events import Episode, Event
from streammaml.initialization import Initialization
from streammaml.jobs import progress
from streammaml.meta.episodes import LABELS_LEAST
from streammaml.meta.outer_loop import Rule
from streammaml.meta_trainer import Trained, past_of, train
from streammaml.recorded import collate, episodes_of

CHUNK = 5_000


def train_from_file(
    config: Config,
    file: Path,
    columns: Columns,
    out: Path,
    steps: int,
    rule: Rule,
    start_from: Initialization | None = None,
) -> tuple[Trained, int]:
    """Meta-train from a history and write the initialization; also returns the rows left out.

    ``start_from``: another domain's initialization, instead of the configured seed's.
    """
    past = past_of(config, _history(config, file, columns))
    _check_rows(file, past.rejected, len(past.y))
    with progress(f"{rule.value}, outer steps", steps) as tell:
        trained = train(
            config,
            past,
            steps=steps,
            rule=rule,
            start_from=start_from,
            on_progress=lambda done, _, loss: tell(done, f"loss {loss:.3f}"),
        )
    whole = out.with_name(f"{out.name}.part")
    fresh = trained.initialization
    counted = replace(fresh, version=max(fresh.version, _version_at(out) + 1))
    whole.write_bytes(initializations.encode(counted))
    whole.replace(out)  # in one step: a worker that starts now sees the old one or the new one
    return replace(trained, initialization=counted), past.rejected


def episodes_of_file(config: Config, file: Path, columns: Columns) -> list[Episode]:
    """The episodes of a history, for a reservoir; InputError where it has none."""
    recorded = collate(config, _history(config, file, columns))
    _check_rows(file, recorded.rejected, len(recorded.y))
    found = list(episodes_of(config, recorded))
    if not found:
        raise InputError(
            f"no context has the {LABELS_LEAST} labels that an episode takes: give a longer "
            "history, or check the columns of context and label"
        )
    return found


def _check_rows(file: Path, rejected: int, kept: int) -> None:
    if rejected > kept:
        raise InputError(
            f"{rejected} of {rejected + kept} rows of {file} are not events of this configuration: "
            "check its features and label"
        )


def _version_at(out: Path) -> int:
    """Of the initialization that is about to be replaced; −1 where there is none.

    A partition that knows it takes no other numbers under its version.
    """
    try:
        return initializations.decode(out.read_bytes()).version
    except (OSError, InitializationError):
        return -1


def _history(config: Config, file: Path, columns: Columns) -> Iterator[list[Event]]:
    """The file's events as a worker would decode them, without those it would reject."""
    decode = EventDecoder(config.features, "json", config.worker.max_record_bytes)
    rows = read_events(file, columns)
    while chunk := list(islice(rows, CHUNK)):
        events = []
        for row in chunk:
            value = row if isinstance(row, bytes) else msgspec.json.encode(row)
            try:
                events.append(decode(MemoryRecord(str(file), 0, 0, 0, None, value, [])))
            except RejectedError:
                events.append(Event())  # counted as rejected when it is collated
        yield events
