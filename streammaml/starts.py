"""What a configuration starts from: its network, and an initialization, a file's or version 0."""

from __future__ import annotations

from pathlib import Path

from streammaml import initialization as initializations
from streammaml.config import BUILT_IN, Config, spec_of
from streammaml.errors import InitializationError
from streammaml.initialization import Initialization, check_fits, draw
from streammaml.learner.kernels.callbacks import Network


def load_network(config: Config) -> Network | None:
    """The configured torch module, made and checked; None where the network is compiled.

    ConfigError of one that cannot be served.
    """
    if config.learner.network in BUILT_IN:
        return None
    # Torch takes seconds and a tenth of a gigabyte: only where it is used.
    from streammaml.meta.serving import TorchNetwork

    return TorchNetwork(spec_of(config), config.learner.seed)


def load_start(config: Config, network: Network | None = None) -> Initialization:
    """The configured file's, or version 0; ``network`` as in ``version_zero``."""
    file = config.learner.initialization
    if not file:
        return version_zero(config, network)
    try:
        payload = Path(file).read_bytes()
    except OSError as error:
        raise InitializationError(
            f"cannot read {file}: {error.strerror}; `streammaml outer --from FILE --out FILE` "
            "writes one"
        ) from error
    initialization = initializations.decode(payload)
    check_fits(initialization, spec_of(config))
    return initialization


def version_zero(config: Config, network: Network | None = None) -> Initialization:
    """Drawn from the seed, equal on all workers and in the outer loop.

    By a network of the user's own itself: ``network``, if it was loaded already.
    """
    learner = config.learner
    own = network or load_network(config)
    if own is not None:
        return own.initial(learner.inner_rate)
    return draw(spec_of(config), learner.seed, learner.inner_rate)
