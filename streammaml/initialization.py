"""The initialization: meta-parameters with their inner rates, where ``learner`` and ``meta`` meet.

Rule: plain NumPy arrays and strings, so that neither side needs the other's library. On disk and
on the wire it is safetensors, never pickle, and nothing is used before it is checked.

Tensors, all float32. Of a network of L layers (``sizes`` has L+1 entries), J = 2L of them:
    ``{i}.weight`` [sizes[i], sizes[i+1]]     ``{i}.bias`` [sizes[i+1]]
Of a custom network its own J parameters by name. In both cases
    ``rates`` [steps, J]                      rate of inner step k on tensor j; 0: it stays
    ``parameter_rates`` [P]                   Meta-SGD: a factor for each parameter; may be absent
and, where the outer loop has trained them, two feature nets with their heads' priors, N = ``f``
(64-64, ReLU, H = 65 features) and ``g`` (64-16, tanh, H = 17), the constant among the features:
    ``N/0.weight`` [F, 64]   ``N/0.bias`` [64]   ``N/1.weight`` [64, H−1]   ``N/1.bias`` [H−1]
    ``N/head`` [H, K]   ``N/log_ridge`` []   ``N/log_scale`` []   in a regression ``g/log_noise`` []
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from streammaml.errors import InitializationError, MisfitError, NonFiniteError
from streammaml.events import Float32s, Floats, Label, Task, canonical

MAX_BYTES = 256 * 1024 * 1024
NETWORK = "network"
"""Beside the feature nets ``f`` and ``g``: θ with its rates."""
HIDDEN = 64
FEATURE_WIDTHS = {"f": 64, "g": 16}
"""Of the feature nets: the numbers that the second layer gives."""

# Of a number beyond 64 bits, of infinity for a whole one, of brackets nested without end, too.
_MALFORMED = (
    *(SafetensorError, LookupError, ValueError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The shape of a model: what must agree between an initialization and its user."""

    task: Task
    sizes: tuple[int, ...]
    """Of a custom network its inputs and outputs only."""
    steps: int
    schema: str
    """Fingerprint of what inputs and outputs mean: ``config.schema_fingerprint``."""
    network: str = ""
    """Of a custom network the path that it is imported by: ``package.module:factory``."""
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Of a custom network the name and shape of each parameter, in its own order."""

    @property
    def layers(self) -> int:
        return len(self.sizes) - 1

    @property
    def outputs(self) -> int:
        """K."""
        return self.sizes[-1]

    @property
    def fingerprint(self) -> str:
        parts: list[object] = [self.task, self.sizes, self.steps, self.schema]
        if self.network:
            parts += [self.network, self.parameters]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in their order in a flat parameter vector."""
        if self.network:
            return dict(self.parameters)
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(self.sizes)):
            shapes[f"{i}.weight"] = (fan_in, fan_out)
            shapes[f"{i}.bias"] = (fan_out,)
        return shapes

    def optional_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of the tensors that may be absent, each group as a whole."""
        shapes: dict[str, tuple[int, ...]] = {
            "parameter_rates": (sum(math.prod(shape) for shape in self.shapes().values()),)
        }
        for net, width in FEATURE_WIDTHS.items():
            shapes |= {
                f"{net}/0.weight": (self.sizes[0], HIDDEN),
                f"{net}/0.bias": (HIDDEN,),
                f"{net}/1.weight": (HIDDEN, width),
                f"{net}/1.bias": (width,),
                f"{net}/head": (width + 1, self.outputs),
                f"{net}/log_ridge": (),
                f"{net}/log_scale": (),
            }
        if self.task is Task.REGRESSION:
            shapes["g/log_noise"] = ()
        return shapes


def group_of(tensor: str) -> str:
    """Which of the optional groups a tensor belongs to: those with one name go together."""
    return tensor.partition("/")[0]


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
        own = self.spec.shapes()
        expected = {**own, "rates": (self.spec.steps, len(own))}
        optional = self.spec.optional_shapes()
        there = {group_of(name) for name in self.tensors if name in optional}
        expected |= {name: shape for name, shape in optional.items() if group_of(name) in there}
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
                raise NonFiniteError(f"tensor {name} holds a value that is not finite")

        if not _are_classes(self.classes, self.spec.outputs):
            raise InitializationError(
                f"its classes {self.classes!r:.80} are not labels of at most {self.spec.outputs} "
                "different classes"
            )

    def theta(self) -> Float32s:
        """All weights and biases as one flat vector [P], in the order of ``Spec.shapes``."""
        return np.concatenate([self.tensors[name].ravel() for name in self.spec.shapes()])


def draw(
    spec: Spec, seed: int, rate: float = 0.1, classes: tuple[Label, ...] = ()
) -> Initialization:
    """Version 0: He-normal weights, the last layer scaled by .3, biases 0; equal on all workers.

    InitializationError of a custom network, whose factory draws (``starts.version_zero``).
    """
    if spec.network:
        raise InitializationError(f"the factory of {spec.network} draws its version 0 itself")
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
        "network": initialization.spec.network,
        "parameters": initialization.spec.parameters,
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
            network=str(header.get("network", "")),
            parameters=tuple(
                (str(name), tuple(int(n) for n in shape))
                for name, shape in header.get("parameters", ())
            ),
        )
        return Initialization(
            spec=spec,
            tensors=tensors,
            version=int(header["version"]),
            parent=int(header["parent"]),
            classes=tuple(header["classes"]),
            notes={str(k): str(v) for k, v in header["notes"].items()},
        )
    except _MALFORMED as error:
        raise InitializationError(f"not an initialization: {error}") from error


def check_fits(initialization: Initialization, spec: Spec) -> None:
    """Raise MisfitError, naming the difference, unless it was made for ``spec``."""
    found = initialization.spec
    if found == spec:
        return
    if found.network != spec.network:
        difference = f"its network is {found.network or 'built in'}, not {spec.network or 'so'}"
    elif found.schema != spec.schema:
        difference = "its features or classes differ"
    elif found.sizes != spec.sizes:
        difference = f"its network is {found.sizes}, not {spec.sizes}"
    elif found.steps != spec.steps:
        difference = f"it has {found.steps} inner steps, not {spec.steps}"
    else:
        difference = "the parameters of its network have other names or shapes"
    raise MisfitError(
        f"the initialization does not fit the configuration: {difference}; "
        "train one with `streammaml outer --from FILE --out FILE` under this configuration"
    )


def arranged(initialization: Initialization, classes: Sequence[Label]) -> Initialization:
    """The same network with the outputs in the order of ``classes``, at most as many as it has.

    Where both know a class, its numbers come with it. All other slots take what is left over in
    its order, first what was trained for no class. Not for a custom network.
    """
    own = [canonical(label) for label in initialization.classes]
    slots = initialization.spec.outputs
    if not own:
        return initialization
    slot_of = {name: slot for slot, name in enumerate(own)}
    places = [slot_of.get(canonical(label)) for label in classes]
    places += [None] * (slots - len(places))
    left = iter([k for k in (*range(len(own), slots), *range(len(own))) if k not in places])
    order = [next(left) if place is None else place for place in places]
    if order == list(range(slots)):
        return replace(initialization, classes=tuple(classes))
    last = f"{initialization.spec.layers - 1}"
    tensors = {
        name: np.ascontiguousarray(tensor[..., order])
        if name in (f"{last}.weight", f"{last}.bias", "f/head", "g/head")
        else tensor
        for name, tensor in initialization.tensors.items()
    }
    if "parameter_rates" in tensors:
        rates = tensors["parameter_rates"]
        outer = rates[: -(math.prod(initialization.spec.sizes[-2:]) + slots)]
        inner = rates[len(outer) :].reshape(-1, slots)  # the last bias stands behind its weight
        tensors["parameter_rates"] = np.concatenate([outer, inner[:, order].ravel()])
    return replace(initialization, tensors=tensors, classes=tuple(classes))


def norms(initialization: Initialization) -> dict[str, float]:
    """Euclidean norm of each group of tensors: ``network`` θ, ``rates``, the nets it may have.

    Rates by the steps that they make: whether in ``rates`` or in Meta-SGD's factors is no matter.
    """
    own = initialization.spec.shapes()
    squares: dict[str, float] = {}
    for name, tensor in initialization.tensors.items():
        if name in ("rates", "parameter_rates"):
            continue
        group = NETWORK if name in own else group_of(name)
        wide = tensor.ravel().astype(np.float64)
        squares[group] = squares.get(group, 0.0) + float(wide @ wide)
    found = {group: math.sqrt(total) for group, total in squares.items()}
    return {**found, "rates": float(np.linalg.norm(effective_rates(initialization)))}


def effective_rates(initialization: Initialization) -> Floats:
    """Rates [steps, J] times the root mean square of the factors that they meet."""
    rates = initialization.tensors["rates"].astype(np.float64)
    factors = initialization.tensors.get("parameter_rates")
    if factors is None:
        return rates
    sizes = [math.prod(shape) for shape in initialization.spec.shapes().values()]
    parts = np.split(factors.astype(np.float64), np.cumsum(sizes)[:-1])
    scaled: Floats = rates * [math.sqrt(float(np.mean(part**2))) for part in parts]
    return scaled


def _are_classes(found: Sequence[object], most: int) -> bool:
    """Whether these, which may come from anywhere, can be the classes by slot."""
    labels = [
        c for c in found if isinstance(c, str | int) or (type(c) is float and math.isfinite(c))
    ]
    return len({canonical(label) for label in labels}) == len(found) <= most


def _metadata(payload: bytes) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors payload, whose reader does not give it."""
    length = int.from_bytes(payload[:8], "little")
    metadata = json.loads(payload[8 : 8 + length])["__metadata__"]
    if not isinstance(metadata, dict):
        raise InitializationError("the safetensors header holds no metadata")
    return metadata
