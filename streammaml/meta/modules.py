"""Any torch module as a stack of networks, one for each task, under ``functional_call`` and vmap.

What vmap cannot run, such as a GRU or an ``if`` on numbers, runs task by task, to the same result.

Rule: the module's own numbers are never touched, nor its inputs. Its parameters come with each
call, its buffers stay what they were when it was made, and it runs in eval mode. What it does with
inputs [N, F], and whether it reshapes them, is its own affair; examples must not depend on each
other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from streammaml.custom import make_network
from streammaml.errors import ConfigError
from streammaml.initialization import Spec
from streammaml.meta.losses import Objective
from streammaml.meta.networks import MLP, Network, Parameters


@lru_cache(maxsize=16)
def network_of(spec: Spec) -> Network:
    """The built-in network, or the custom one that ``spec`` names; ConfigError if it cannot be."""
    if not spec.network:
        return MLP
    module = make_network(spec.network, spec.sizes[0], spec.outputs)
    return ModuleNetwork(module.to("cpu", torch.float32))  # as the worker runs it


@contextmanager
def _differentiable() -> Iterator[None]:
    """Attention in plain operations: the fused ones have no second derivative, or none at all."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class ModuleNetwork:
    """A torch module, its parameters by their names in it."""

    def __init__(self, module: nn.Module, prefix: str = "") -> None:
        for name, part in module.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                raise ConfigError(
                    f"learner.network: {name or 'the module'} is a {type(part).__name__}, whose "
                    "statistics mix the examples of all contexts; use GroupNorm or LayerNorm"
                )
        self._module = module.eval()
        self._prefix = prefix  # of the parameters' names: not empty where this is a part
        self._shapes = {f"{prefix}{n}": p.shape for n, p in module.named_parameters()}
        self._buffers = dict(module.named_buffers())
        self._leaf = list(self._shapes)[-1].removeprefix(prefix).rpartition(".")[0]
        self.batches = True
        """Whether all tasks run at once; False as soon as vmap could not and a loop could."""

    @_differentiable()
    def apply(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        own = {n: p for n, p in parameters.items() if n in self._shapes}
        stacked = {n: 0 if p.dim() > self.rank(n) else None for n, p in own.items()}
        if any(at == 0 for at in stacked.values()):
            return self._stacked(own, stacked, inputs)
        flat = self._call(own, inputs.flatten(0, 1))
        return flat.reshape(*inputs.shape[:2], *flat.shape[1:])

    def gradient(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Tensor,
        objective: Objective,
        moving: Collection[str],
    ) -> Parameters:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Without a graph the others are numbers, and so are these but for one step back.
            given = dict(parameters) if graph else {n: p.detach() for n, p in parameters.items()}
            own = {n: p for n, p in given.items() if n in moving}
            own = {n: p if p.requires_grad else p.detach().requires_grad_() for n, p in own.items()}
            total = objective.loss(self.apply({**given, **own}, inputs)).sum()
            found = torch.autograd.grad(
                total, list(own.values()), create_graph=graph, materialize_grads=True
            )
        return dict(zip(own, found, strict=True))

    def rank(self, name: str) -> int:
        return len(self._shapes[name])

    def last(self, names: Collection[str]) -> tuple[str, ...]:
        first = f"{self._prefix}{self._leaf}." if self._leaf else self._prefix
        return tuple(n for n in names if n.startswith(first))

    @_differentiable()
    def split(
        self, parameters: Mapping[str, Tensor], inputs: Tensor
    ) -> tuple[Network, Tensor] | None:
        if not self._leaf:
            return None
        leaf = self._module.get_submodule(self._leaf)
        calls: list[tuple[tuple[Any, ...], Any]] = []
        hook = leaf.register_forward_hook(
            lambda _, given, named, result: calls.append(((*given, *named.values()), result)),
            with_kwargs=True,
        )
        try:
            outputs = self._call(parameters, inputs.flatten(0, 1))
        finally:
            hook.remove()
        if len(calls) != 1 or calls[0][1] is not outputs or len(calls[0][0]) != 1:
            return None  # something comes after the last layer or beside it, or it works twice
        (entered,) = calls[0][0]
        top = ModuleNetwork(leaf, f"{self._prefix}{self._leaf}.")
        return top, entered.reshape(*inputs.shape[:2], *entered.shape[1:])

    @_differentiable()
    def astray(self, inputs: Tensor) -> list[str]:
        """Parameters that forward finds elsewhere than in the module's attributes.

        It would not see those that come with a call. ``inputs`` are of one network [N, F].
        """
        own = dict(self._module.named_parameters(self._prefix.removesuffix(".")))
        given = {n: p.detach().clone().requires_grad_() for n, p in own.items()}
        with torch.enable_grad():
            by_own, by_given = (
                torch.autograd.grad(
                    self._call(parameters, inputs).sum(),
                    list(parameters.values()),
                    allow_unused=True,
                )
                for parameters in (own, given)
            )
        uses = zip(own, by_own, by_given, strict=True)
        return [name for name, one, other in uses if one is not None and other is None]

    def _stacked(
        self, own: Parameters, stacked: Mapping[str, int | None], inputs: Tensor
    ) -> Tensor:
        """Outputs of each task's own network, those of all tasks at once where that can be."""
        if self.batches:
            try:
                outputs: Tensor = vmap(self._call, in_dims=(stacked, 0))(own, inputs)
                return outputs
            except Exception:  # vmap's of many types, or the module's own, which comes again below
                pass
        shared = {n: p for n, p in own.items() if stacked[n] is None}
        each = zip(*(p.unbind() for n, p in own.items() if stacked[n] == 0), strict=True)
        names = [n for n in own if stacked[n] == 0]
        rows = [
            self._call({**shared, **dict(zip(names, task, strict=True))}, its_inputs)
            for task, its_inputs in zip(each, inputs, strict=True)
        ]
        self.batches = False
        return torch.stack(rows)

    def _call(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        own = {n.removeprefix(self._prefix): p for n, p in parameters.items()}
        # Copies: what a module changes in place must not outlive the call.
        buffers = {n: b.clone() for n, b in self._buffers.items()}
        outputs: Tensor = functional_call(self._module, {**own, **buffers}, (inputs.clone(),))
        return outputs
