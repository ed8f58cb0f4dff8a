"""How every op meets PyTorch's dispatcher; the rules that all ops share stand here once.

An op is one schema in the namespace ``tzn``. Its implementation serves every device and chooses the back end itself, so
eager, compiled and exported programs and the counters of :mod:`tzn.profiling` all take the same way:

    public function (checks)  ->  torch.ops.tzn.<op>  ->  Autograd key  ->  implementation  ->  reference | csrc | kernels

* Autocast: matrix-like inputs are cast before the call (:func:`autocast`), nothing is cast inside it.
* Accumulation: float32, or float64 for float64 (:func:`accumulate_dtype`).
* Strides: kernels want adjacent elements in the last dimension (:func:`adjacent`); results are dense.
* Gradients: an op with kernels for them brings an ``autograd.Function``; every other op that is asked for gradients runs its
  definition. So do second derivatives, forward-mode derivatives and the transforms of ``torch.func``, of all ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.compiler.config
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("tzn", "DEF")
# PyTorch keeps compiled programs on disk and knows nothing of our schemas: a program that another version of tzn has compiled
# would call ops that are not there any more. Raise the number with every change of a schema whose name starts with "_".
SCHEMAS = 1
torch.compiler.config.cache_key_tag += f"|tzn {SCHEMAS}"


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Registers an op; returns its overload.

    Args:
        schema: without the namespace; the first argument is a tensor.
        run: the implementation, for every device; runs without autocast.
        fake: shapes, dtypes and strides of the results for tracing.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, _without_autocast(run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"tzn::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.tzn, name).default
    _RUN[op] = run
    return op


_RUN: dict[Any, Callable[..., Any]] = {}  # implementations by op


def _without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        device = arguments[0].device.type
        if not torch.is_autocast_enabled(device):
            return run(*arguments)
        with torch.autocast(device, enabled=False):
            return run(*arguments)

    return wrapped


def differentiate(op: Any, definition: Callable[..., Any], apply: Callable[..., Any] | None = None) -> None:
    """Registers what ``op`` does where gradients may be wanted.

    Args:
        definition: the same arguments and results in plain PyTorch, differentiable as often as one likes.
        apply: of an ``autograd.Function`` with kernels for the first derivative; None: the definition has them.
    """

    run = _RUN[op]

    def autograd(*arguments: Any) -> Any:
        # Both are switched on for a few calls; whoever uses them wants right numbers first.
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            return definition(*arguments)
        if torch.is_grad_enabled() and any(x.requires_grad for x in _tensors(arguments)):
            return (apply or definition)(*arguments)
        if is_plain(arguments[0]) and not torch._C._len_torch_dispatch_stack():
            return run(*arguments)  # where nobody else is to see the op, another round of dispatch only takes time
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    LIBRARY.impl(op._schema.name.split("::")[1], _without_autocast(autograd), "Autograd")


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from (x for x in argument if isinstance(x, Tensor))


def below_autograd(op: Any, *arguments: Any) -> Any:
    """Calls an op from inside of its own ``autograd.Function``."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def gradients_of(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor, *, again: bool
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)``, None for inputs that need none.

    Args:
        again: keep the graph of the gradients themselves (second derivatives); ``inputs`` are then part of a graph.
            Otherwise they are detached, and nothing is kept.
    """
    with torch.enable_grad():
        leaves = list(inputs) if again else [x if x is None else x.detach().requires_grad_() for x in inputs]
        wanted = [x for x in leaves if x is not None and x.requires_grad]
        found = iter(torch.autograd.grad(function(*leaves), wanted, grad, create_graph=again, allow_unused=True))
    of_leaves = [next(found) if x is not None and x.requires_grad else None for x in leaves]
    if again:
        return of_leaves
    return [g if x is None or g is not None else torch.zeros_like(x) for x, g in zip(leaves, of_leaves, strict=True)]


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors with values, not what tracing puts in their place."""
    return all(x is None or type(x) in (Tensor, torch.nn.Parameter) for x in tensors)


def new_size() -> torch.SymInt:
    """A size of a result that depends on the data, for fakes."""
    return torch.library.get_ctx().new_dynamic_size()


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What kernels add up in, and in which they take biases, gates and norms."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast the tensors in its dtype, as PyTorch does for matrix products: all but float64."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def adjacent(x: Tensor) -> Tensor:
    """``x`` with adjacent elements in its last dimension, which is all that the kernels ask of strides."""
    if x.stride(-1) == 1 or x.shape[-1] <= 1:
        return x
    return x.clone(memory_format=torch.contiguous_format)  # contiguous() leaves an empty tensor's strides as they are
