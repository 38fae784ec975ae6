"""A network of the user's own: imported by its path, in a package that needs no torch otherwise."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from streammaml.errors import ConfigError


@lru_cache(maxsize=16)
def parameters_of(path: str, inputs: int, outputs: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of each parameter of a custom network; ConfigError if it cannot be made."""
    module = make_network(path, inputs, outputs)
    try:
        found = tuple((str(name), tuple(p.shape)) for name, p in module.named_parameters())
    except AttributeError as error:
        raise ConfigError(
            f"learner.network: {path} gives a {type(module).__name__}, no torch.nn.Module"
        ) from error
    except RuntimeError as error:  # of a parameter without a shape
        raise ConfigError(
            f"learner.network: {path} gives a module with lazy parts: name their sizes"
        ) from error
    if not found:
        raise ConfigError(f"learner.network: {path} gives a module without parameters")
    return found


def make_network(path: str, inputs: int, outputs: int) -> Any:
    """What the factory gives: a torch module, in a package that needs no torch otherwise."""
    module_name, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
        return factory(inputs, outputs)
    except Exception as error:  # it is the user's code
        raise ConfigError(
            f"learner.network: cannot make {path} with {inputs} inputs and {outputs} outputs: "
            f"{type(error).__name__}: {error}"
        ) from error
