"""How every op meets PyTorch's dispatcher; the rules that all ops share stand here once.

An op is one schema in the namespace ``tzn``. Its implementation serves every device and chooses the back end itself, so
eager, compiled and exported programs and the counters of :mod:`tzn.profiling` all take the same way:

    public function (checks)  ->  torch.ops.tzn.<op>  ->  Autograd key  ->  implementation  ->  reference | csrc | kernels

* Autocast: matrix-like inputs are cast before the call (:func:`autocast`), nothing is cast inside it.
* Accumulation: float32, or float64 for float64 (:func:`tzn.kernels.accumulate_dtype`).
* Strides: kernels want adjacent elements in the last dimension (:func:`tzn.kernels.adjacent`); results are dense.
* Gradients: an op with kernels for them (:func:`define_with_gradients`) becomes three schemas, of which two are private.
  Every other op (:func:`define`) that is asked for gradients runs its definition. So do second derivatives, forward-mode
  derivatives and the transforms of ``torch.func``, of all ops.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.compiler.config
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("tzn", "DEF")
# PyTorch keeps compiled programs on disk and knows nothing of our schemas: a program that another version of tzn has compiled
# would call ops that are not there any more. Raise the number with every change of a schema whose name starts with "_".
SCHEMAS = 2
torch.compiler.config.cache_key_tag += f"|tzn {SCHEMAS}"


def define(
    schema: str, run: Callable[..., Any], fake: Callable[..., Any], definition: Callable[..., Any] | None
) -> Any:
    """Registers an op; returns what public functions call, without a ``definition`` the op's overload.

    Args:
        schema: without the namespace; the first argument is a tensor.
        run: the implementation, for every device; runs without autocast.
        fake: shapes, dtypes and strides of the results for tracing.
        definition: the same arguments and results in plain PyTorch, differentiable as often as one likes: what runs where
            gradients are wanted. None: the op is called where none are.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, _without_autocast(run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"tzn::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.tzn, name).default
    return op if definition is None else _differentiate(op, run, definition, definition)


def _without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        device = arguments[0].device.type
        if not torch.is_autocast_enabled(device):
            return run(*arguments)
        with torch.autocast(device, enabled=False):
            return run(*arguments)

    return wrapped


def _differentiate(
    op: Any, run: Callable[..., Any], definition: Callable[..., Any], apply: Callable[..., Any]
) -> Callable[..., Any]:
    """What ``op`` does where gradients may be wanted: ``apply`` where they are. Returns what public functions call."""

    def autograd(*arguments: Any) -> Any:
        # Both are switched on for a few calls; whoever uses them wants right numbers first.
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            return definition(*arguments)
        if torch.is_grad_enabled() and _any(_needs_gradient, arguments):
            return apply(*arguments)
        return _below_autograd(op, *arguments)

    def call(*arguments: Any) -> Any:
        """The op; where nobody is to see it, what it would come to: rounds of dispatch take 5 µs and more."""
        if torch.compiler.is_compiling() or _watched(arguments[0].device.type):
            return op(*arguments)
        sort = _sort(arguments)
        if sort == SPECIAL:
            return op(*arguments)
        return apply(*arguments) if sort == WITH_GRADIENT and _grad_enabled() else run(*arguments)

    LIBRARY.impl(op._schema.name.split("::")[1], _without_autocast(autograd), "Autograd")
    return call


# Looked up once: a call of an op asks all of them.
_modes, _transforms = torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active
_traced, _profiled = torch._C._get_tracing_state, torch._C._autograd._profiler_enabled
_grad_enabled, _autocast = torch.is_grad_enabled, torch.is_autocast_enabled
_TENSORS, _SIMPLE = (Tensor, torch.nn.Parameter), (type(None), bool, int, float, str)


PLAIN, WITH_GRADIENT, SPECIAL = range(3)


def _watched(device: str) -> bool:
    """Whether tracing, modes, profilers, transforms or autocast have a part in calls, or tensors have no values ("meta")."""
    if _modes() or _transforms() or _profiled() or forward_ad._current_level >= 0 or _traced() is not None:
        return True
    return device not in ("cpu", "cuda") or _autocast(device)


def _sort(arguments: Sequence[Any]) -> int:
    """PLAIN: tensors, numbers, texts, lists of them; WITH_GRADIENT: some need one; SPECIAL: all else, such as subclasses."""
    found = PLAIN
    for x in arguments:
        kind = type(x)
        if kind in _TENSORS:
            if x.requires_grad:
                found = WITH_GRADIENT
        elif kind is list or kind is tuple:
            found = max(found, _sort(x))
            if found == SPECIAL:
                return SPECIAL
        elif kind not in _SIMPLE:
            return SPECIAL
    return found


def _any(holds: Callable[[Tensor], bool], arguments: Sequence[Any]) -> bool:
    """Whether it holds for one of the tensors, also of those in lists."""
    for x in arguments:
        if isinstance(x, Tensor):
            if holds(x):
                return True
        elif isinstance(x, (list, tuple)) and _any(holds, x):
            return True
    return False


def _needs_gradient(x: Tensor) -> bool:
    return x.requires_grad


def _is_special(x: Tensor) -> bool:
    return type(x) not in (Tensor, torch.nn.Parameter)


def _below_autograd(op: Any, *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def define_with_gradients(
    name: str,
    arguments: str,
    *,
    choose: Callable[..., str],
    definition: Callable[..., Tensor],
    forward: Callable[..., tuple[Tensor, list[Tensor]]],
    backward: Callable[..., list[Tensor]],
    empty_saved: Callable[..., list[Tensor]],
    reads_out: bool = False,
) -> Any:
    """Registers an op of one result whose back ends have kernels for the first derivative; returns as :func:`define`.

    Args:
        arguments: their schema; all floating-point tensors among them, also those in lists, have gradients.
        choose: the back end for the arguments.
        definition: as in :func:`define`; serves the back end "reference", and everything without elements.
        forward: of (back end, whether to keep anything, arguments): the result, and what the backward pass reads beside it.
        backward: of (back end, gradient, result, what was kept, arguments): gradients in the order of the arguments.
        empty_saved: of (back end, arguments): what ``forward`` keeps, not filled in.
        reads_out: whether ``backward`` reads the result where something was kept.
    """

    def run(backend: str, keep: bool, given: Sequence[Any]) -> tuple[Tensor, list[Tensor]]:
        if backend == "reference" or not given[0].numel():
            return dense(definition(*given)), empty_saved(backend, *given) if keep and backend != "reference" else []
        return forward(backend, keep, *given)

    def run_backward(grad: Tensor, *rest: Any) -> list[Tensor]:
        *given, backend, out, saved = rest
        if backend == "reference" or not given[0].numel():
            found = _by_definition(definition, given, grad, again=False)
        else:
            found = backward(backend, grad, out, saved, *given)  # type: ignore[assignment]
        leaves = filter(_is_leaf, _flat(given))
        return [torch.zeros_like(x) if g is None else dense(g.to(x.dtype)) for x, g in zip(leaves, found, strict=True)]

    def run_op(*given: Any) -> Tensor:
        return run(choose(*given), False, given)[0]

    op = define(
        f"{name}({arguments}) -> Tensor",
        run_op,
        lambda *given: empty_dense(given[0]),
        None,
    )
    with_saved = define(
        f"_{name}_forward({arguments}, str backend) -> (Tensor, Tensor[])",
        lambda *given: run(given[-1], True, given[:-1]),
        lambda *given: (empty_dense(given[0]), empty_saved(given[-1], *given[:-1]) if given[-1] != "reference" else []),
        None,
    )
    gradients = define(
        f"_{name}_backward(Tensor grad, {arguments}, str backend, Tensor? out, Tensor[] saved) -> Tensor[]",
        run_backward,
        lambda grad, *rest: [empty_dense(x) for x in filter(_is_leaf, _flat(rest[:-3]))],
        None,
    )
    parts = _Parts(definition, with_saved, gradients, reads_out)

    def apply(*given: Any) -> Tensor:
        flat = _flat(given)
        backend = choose(*given)
        if backend == "reference" and not _any(_is_special, flat):
            return definition(*given)  # its own gradients need no second run
        sizes = [len(x) if isinstance(x, (list, tuple)) else None for x in given]
        return _Gradients.apply(parts, backend, sizes, *flat)  # type: ignore[no-any-return]

    return _differentiate(op, run_op, definition, apply)


class _Parts(NamedTuple):
    definition: Callable[..., Tensor]
    forward: Any
    backward: Any
    reads_out: bool


class _Gradients(torch.autograd.Function):
    """Forward and backward pass on the same back end."""

    @staticmethod
    def forward(ctx, parts, backend, sizes, *flat):  # type: ignore[no-untyped-def]
        # The back end is an argument of both ops: a compiled program, also from a cache, runs as it was traced.
        out, saved = _below_autograd(parts.forward, *_nested(flat, sizes), backend)
        ctx.set_materialize_grads(False)
        ctx.parts, ctx.sizes, ctx.backend = parts, sizes, backend
        ctx.plain = [None if isinstance(x, Tensor) else x for x in flat]
        tensors = [x if isinstance(x, Tensor) else None for x in flat]
        ctx.save_for_backward(*tensors, out if saved and parts.reads_out else None, *saved)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        count = len(ctx.plain)
        if grad is None:
            return (None,) * (3 + count)
        flat = [plain if x is None else x for x, plain in zip(ctx.saved_tensors, ctx.plain, strict=False)]
        given, (out, *saved) = _nested(flat, ctx.sizes), ctx.saved_tensors[count:]
        if torch.is_grad_enabled():
            found = iter(_by_definition(ctx.parts.definition, given, grad, again=True))
        else:
            found = iter(ctx.parts.backward(grad, *given, ctx.backend, out, saved))
        return None, None, None, *(next(found) if _is_leaf(x) else None for x in flat)


def _flat(arguments: Sequence[Any]) -> list[Any]:
    return [x for a in arguments for x in (a if isinstance(a, (list, tuple)) else (a,))]


def _nested(flat: Sequence[Any], sizes: Sequence[int | None]) -> list[Any]:
    """Lists where ``sizes`` has their lengths."""
    left = iter(flat)
    return [next(left) if size is None else list(itertools.islice(left, size)) for size in sizes]


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _by_definition(
    definition: Callable[..., Tensor], given: Sequence[Any], grad: Tensor, *, again: bool
) -> list[Tensor | None]:
    """Gradients of the definition for all floating-point arguments, None for those that had no part or need none.

    Args:
        again: keep the graph of the gradients themselves (second derivatives); the arguments are then part of a graph.
            Otherwise they are detached, and nothing is kept.
    """
    flat = [x.detach().requires_grad_() if _is_leaf(x) and not again else x for x in _flat(given)]
    wanted = [x for x in flat if _is_leaf(x) and x.requires_grad]
    with torch.enable_grad():
        out = definition(*_nested(flat, [len(x) if isinstance(x, (list, tuple)) else None for x in given]))
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=again, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in flat if _is_leaf(x)]


def dense(x: Tensor) -> Tensor:
    """Contiguous, but ``[B, H, T, D]`` in the memory order of ``[B, T, H, D]``."""
    if x.dim() != 4:
        return x.contiguous()
    rows = x.transpose(1, 2)
    return x if rows.is_contiguous() else rows.contiguous().transpose(1, 2)


def empty_dense(x: Tensor) -> Tensor:
    """Like ``x``, in the strides of :func:`dense`, not filled in."""
    if x.dim() != 4:
        return x.new_empty(x.shape)
    batch, heads, steps, width = x.shape
    return x.new_empty(batch, steps, heads, width).transpose(1, 2)


def new_size() -> torch.SymInt:
    """A size of a result that depends on the data, for fakes."""
    return torch.library.get_ctx().new_dynamic_size()


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast the tensors in its dtype, as PyTorch does for matrix products: all but float64."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)
