"""The initialization: meta-parameters with their inner rates, where ``learner`` and ``meta`` meet.

Rule: plain NumPy arrays and strings, so that neither side needs the other's library. On disk and
on the wire it is safetensors, never pickle, and nothing is used before it is checked.

Tensors, for a network of L layers (``sizes`` has L+1 entries):
    ``{i}.weight`` [sizes[i], sizes[i+1]]     ``{i}.bias`` [sizes[i+1]]     float32
    ``rates`` [steps, 2L]                     rate of inner step k on tensor j (weight 0, bias 0, …)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from streammaml.errors import InitializationError
from streammaml.events import Float32s, Label, Task

MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The shape of a model: what must agree between an initialization and its user."""

    task: Task
    sizes: tuple[int, ...]
    steps: int
    schema: str
    """Fingerprint of what inputs and outputs mean: ``config.schema_fingerprint``."""

    @property
    def layers(self) -> int:
        return len(self.sizes) - 1

    @property
    def fingerprint(self) -> str:
        text = json.dumps([self.task, self.sizes, self.steps, self.schema])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in their order in a flat parameter vector."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(self.sizes)):
            shapes[f"{i}.weight"] = (fan_in, fan_out)
            shapes[f"{i}.bias"] = (fan_out,)
        return shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialization:
    """Meta-parameters of one version. Immutable: a new one is a new version."""

    spec: Spec
    tensors: Mapping[str, Float32s]
    version: int = 0
    parent: int = -1
    classes: tuple[Label, ...] = ()
    """Classes by slot where the schema left them open; empty where it lists them."""
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = {**self.spec.shapes(), "rates": (self.spec.steps, 2 * self.spec.layers)}
        if set(self.tensors) != set(expected):
            raise InitializationError(
                f"expected the tensors {sorted(expected)}, found {sorted(self.tensors)}"
            )
        for name, shape in expected.items():
            tensor = self.tensors[name]
            if tensor.shape != shape or tensor.dtype != np.float32:
                raise InitializationError(
                    f"tensor {name}: expected float32 {shape}, found {tensor.dtype} {tensor.shape}"
                )
            if not np.isfinite(tensor).all():
                raise InitializationError(f"tensor {name} holds a value that is not finite")

    def theta(self) -> Float32s:
        """All weights and biases as one flat vector [P], in the order of ``Spec.shapes``."""
        return np.concatenate([self.tensors[name].ravel() for name in self.spec.shapes()])


def draw(
    spec: Spec, seed: int, rate: float = 0.1, classes: tuple[Label, ...] = ()
) -> Initialization:
    """Version 0: He-normal weights, the last layer scaled by .3, biases 0; equal on all workers."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Float32s] = {}
    for name, shape in spec.shapes().items():
        if len(shape) == 1:
            tensors[name] = np.zeros(shape, np.float32)
            continue
        scale = math.sqrt(2 / shape[0]) * (0.3 if name == f"{spec.layers - 1}.weight" else 1.0)
        tensors[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    tensors["rates"] = np.full((spec.steps, 2 * spec.layers), rate, np.float32)
    return Initialization(spec=spec, tensors=tensors, classes=classes, notes={"seed": str(seed)})


def encode(initialization: Initialization) -> bytes:
    """Write an initialization as safetensors bytes."""
    header = {
        "task": initialization.spec.task.value,
        "sizes": list(initialization.spec.sizes),
        "steps": initialization.spec.steps,
        "schema": initialization.spec.schema,
        "version": initialization.version,
        "parent": initialization.parent,
        "classes": list(initialization.classes),
        "notes": dict(initialization.notes),
    }
    return save(dict(initialization.tensors), metadata={"streammaml": json.dumps(header)})


def decode(payload: bytes) -> Initialization:
    """Read safetensors bytes; raise InitializationError on anything that is not right."""
    if len(payload) > MAX_BYTES:
        raise InitializationError(f"{len(payload)} bytes are more than the cap of {MAX_BYTES}")
    try:
        tensors = load(payload)
        header = json.loads(_metadata(payload)["streammaml"])
        spec = Spec(
            task=Task(header["task"]),
            sizes=tuple(int(n) for n in header["sizes"]),
            steps=int(header["steps"]),
            schema=str(header["schema"]),
        )
        return Initialization(
            spec=spec,
            tensors=tensors,
            version=int(header["version"]),
            parent=int(header["parent"]),
            classes=tuple(header["classes"]),
            notes={str(k): str(v) for k, v in header["notes"].items()},
        )
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InitializationError(f"not an initialization: {error}") from error


def check_fits(initialization: Initialization, spec: Spec) -> None:
    """Raise InitializationError, naming the difference, unless it was made for ``spec``."""
    found = initialization.spec
    if found == spec:
        return
    if found.schema != spec.schema:
        difference = "its features or classes differ"
    elif found.sizes != spec.sizes:
        difference = f"its network is {found.sizes}, not {spec.sizes}"
    else:
        difference = f"it has {found.steps} inner steps, not {spec.steps}"
    raise InitializationError(
        f"the initialization does not fit the configuration: {difference}; "
        "train one with `streammaml outer --from FILE --once` under this configuration"
    )


def _metadata(payload: bytes) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors payload, whose reader does not give it."""
    length = int.from_bytes(payload[:8], "little")
    metadata = json.loads(payload[8 : 8 + length])["__metadata__"]
    if not isinstance(metadata, dict):
        raise InitializationError("the safetensors header holds no metadata")
    return metadata
