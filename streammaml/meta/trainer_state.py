"""What the outer loop keeps between two starts, as bytes: optimizers, and what was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.numpy import load, save

from streammaml.errors import DamagedError, IncompatibleError, InitializationError
from streammaml.events import Ints
from streammaml.initialization import Spec
from streammaml.meta.nets import Packed
from streammaml.sealed import FINGERPRINT_BYTES, seal, unseal

CHECKPOINT = b"outer"
CUTS = "cuts"
BAD = (
    *(DamagedError, IncompatibleError, InitializationError, SafetensorError),
    *(LookupError, ValueError, TypeError, AttributeError),
)
"""What any bytes may raise here, or where they are used."""


class TrainerState(NamedTuple):
    """Of a trainer between two runs."""

    incumbent: str
    """Digest of what the optimizers stand at."""
    rule: str
    runs: int
    nets: Mapping[str, Packed]
    cuts: Ints | None
    """[M, 3]; None in a checkpoint of an earlier release."""
    apart: bool


def encode_state(state: TrainerState, spec: Spec) -> bytes:
    """One sealed value for the model of ``spec``."""
    header = {
        "incumbent": state.incumbent,
        "rule": state.rule,
        "runs": state.runs,
        "counts": {net: counts for net, (_, counts) in state.nets.items()},
        "apart": state.apart,
    }
    tensors = {f"{net}:{n}": t for net, (own, _) in state.nets.items() for n, t in own.items()}
    beside = {} if state.cuts is None else {CUTS: state.cuts}
    body = json.dumps(header).encode() + b"\n" + save({**tensors, **beside})
    return seal(CHECKPOINT, _fingerprint(spec), body)


def decode_state(payload: bytes, spec: Spec) -> TrainerState:
    """What :func:`encode_state` gave; one of ``BAD`` for anything else."""
    body = bytes(unseal(CHECKPOINT, _fingerprint(spec), payload))
    first, _, rest = body.partition(b"\n")
    header, tensors = json.loads(first), load(rest)
    cuts = tensors.pop(CUTS, None)
    counts: dict[str, dict[str, int]] = header["counts"]
    nets: dict[str, Packed] = {net: ({}, counts[net]) for net in counts}
    for name, tensor in tensors.items():
        net, _, own = name.partition(":")
        nets[net][0][own] = tensor
    return TrainerState(
        incumbent=str(header["incumbent"]),
        rule=str(header["rule"]),
        runs=int(header["runs"]),
        nets=nets,
        cuts=cuts,
        apart=bool(header.get("apart", False)),
    )


def _fingerprint(spec: Spec) -> bytes:
    return bytes.fromhex(spec.fingerprint)[:FINGERPRINT_BYTES]
