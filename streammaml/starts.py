"""The initialization that a configuration starts from: a file's, or version 0."""

from __future__ import annotations

from pathlib import Path

from streammaml import initialization as initializations
from streammaml.config import Config, spec_of
from streammaml.errors import InitializationError
from streammaml.initialization import Initialization, check_fits, draw


def load_start(config: Config) -> Initialization:
    """The configured file's, or version 0."""
    file = config.learner.initialization
    if not file:
        return version_zero(config)
    try:
        payload = Path(file).read_bytes()
    except OSError as error:
        raise InitializationError(
            f"cannot read {file}: {error.strerror}; `streammaml outer --from FILE --once` writes "
            "one"
        ) from error
    initialization = initializations.decode(payload)
    check_fits(initialization, spec_of(config))
    return initialization


def version_zero(config: Config) -> Initialization:
    """Drawn from the seed, equal on all workers and in the outer loop."""
    learner = config.learner
    return draw(spec_of(config), learner.seed, learner.inner_rate)
