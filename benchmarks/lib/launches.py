"""What a GPU would launch, counted without one: every operation of a run on tensors that have shapes and no values.

A run on the device "meta" takes the way of CUDA tensors: nothing looks at values, the Triton back end serves. A dispatch
mode sees what PyTorch dispatches, takes composite operations apart as PyTorch does (padding is a fill and a copy), and the
launches of Triton kernels are recorded in place of being run.

Counted, one launch each unless said otherwise: every PyTorch operation that writes device memory (LAUNCHES: those that
are several kernels there), every Triton launch, every call of the nvcc library. Not counted: views, allocation, results
without elements, scalars on the host, a split of a matrix product that cuBLAS may choose. So counted, launches are the
nodes of the CUDA graph that ``tzn.inference.fixed.GraphedDetector`` captures, two copies of inputs before it aside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BACKEND = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)  # where composite kernels are found: backends alike
COPIES = ("aten::copy_", "aten::native_layer_norm")  # composite by name, one kernel on CUDA
ALLOCATE = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided")
SMALL_SORT = 4096  # elements of a row that one block sorts


class Launch(NamedTuple):
    """One kernel."""

    kind: str  # "torch", "triton" or "nvcc"
    name: str
    tensors: tuple[Tensor, ...]  # read and written, each once, without values
    numbers: Mapping[str, Any]  # a Triton kernel's arguments by name, with the grid
    compiled: Any = None  # what a ``compile_only`` made of a Triton kernel

    @property
    def bytes(self) -> int:
        """Memory that moves if every tensor given moves once; what is broadcast counts as stored."""
        return sum(stored(x) for x in self.tensors)


def stored(x: Tensor) -> int:
    elements = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        elements *= size if stride or size == 0 else 1
    return elements * x.element_size()


def suppression_threads(number: int, groups: int) -> int:
    """As ``csrc/cuda/nms.cu`` chooses them."""
    return 1024 if number // groups > 4096 else 256 if number > 256 else 64


def sorts(arguments: tuple[Any, ...]) -> int:
    """Kernels of a sort with indices: copy, indices, and one block a row, or a radix sort: histogram, scan, four passes."""
    x = arguments[0]
    return 3 if x.shape[-1] <= SMALL_SORT else 8


LAUNCHES: dict[str, Callable[[tuple[Any, ...]], int]] = {"aten::sort": sorts, "aten::topk": lambda _: 2}


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


class _Recorder(TorchDispatchMode):
    def __init__(self, found: list[Launch]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        schema = function._schema
        full = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
        if schema.name.startswith("tzn_native::"):
            return self._compiled(schema.name, arguments)
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        composite = has(full, "CompositeExplicitAutograd") and not has(full, "CPU")
        if composite and not function.is_view and schema.name not in COPIES:
            with self:
                return function.redispatch(BACKEND, *arguments, **keywords)
        wanted = (str(a.type) for a in schema.arguments)  # a number in a tensor's place comes unwrapped from C++
        arguments = tuple(
            torch.tensor(x) if kind == "Tensor" and isinstance(x, (int, float)) else x
            for kind, x in zip(wanted, arguments, strict=False)
        )
        result = function(*arguments, **keywords)
        outputs = [x for x in _tensors(result) if x.device.type == "meta" and x.numel()]
        if function.is_view or schema.name in ALLOCATE or not outputs:
            return result
        inputs = [x for x in (*_tensors(arguments), *_tensors(keywords)) if x.device.type == "meta"]
        different = {id(x): x for x in (*inputs, *outputs)}
        launch = Launch("torch", schema.name.removeprefix("aten::"), tuple(different.values()), {})
        self.found += [launch] * LAUNCHES.get(schema.name, lambda _: 1)(arguments)
        return result

    def _compiled(self, name: str, arguments: Any) -> Any:
        if name != "tzn_native::suppress_groups":
            raise AssertionError(f"{name}: not a kernel of CUDA devices")
        segments, scores, labels, _, groups, capacity = arguments[:6]
        given = [segments.contiguous(), scores.contiguous(), *([] if labels is None else [labels.contiguous()])]
        shape = (scores.shape[0], groups, capacity)
        index, score = (scores.new_empty(shape, dtype=dtype) for dtype in (torch.int32, torch.float32))
        made = scores.new_empty(shape[:2], dtype=torch.int32)
        if index.numel():
            number = scores.shape[1]
            numbers = {
                "programs": scores.shape[0] * groups, "number": number, "capacity": capacity,
                "threads": suppression_threads(number, groups),
            }  # fmt: skip
            self.found.append(Launch("nvcc", "suppress_groups", (*given, index, score, made), numbers))
        return index, score, made


@contextmanager
def recorded(compile_only: Callable[..., Any] | None = None) -> Iterator[list[Launch]]:
    """Inside, what runs on "meta" tensors takes the way of CUDA tensors and appends to the list what it would launch.

    Args:
        compile_only: called as ``JITFunction.run`` is in place of every Triton launch; what it returns is kept.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    from tzn.ops import _backend, _fused

    found: list[Launch] = []
    if (reason := _backend.missing_native()) is not None:  # loaded before anybody watches
        raise RuntimeError(reason)

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool = False, **keywords: Any) -> None:
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | keywords
        compiled = (
            None if compile_only is None else compile_only(kernel, *arguments, grid=grid, warmup=warmup, **keywords)
        )
        tensors = {id(x): x for x in _tensors(named)}
        found.append(Launch("triton", kernel.__name__, tuple(tensors.values()), named | {"grid": grid}, compiled))

    with (
        mock.patch.object(InterpretedFunction, "run", record),
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(_backend, "_missing_triton", lambda: None),
        mock.patch.object(_fused, "_watched", lambda device: False),  # the recorder alone is to see them
        mock.patch.object(torch, "is_autocast_enabled", lambda device: False),  # it does not know "meta"
        mock.patch.dict(os.environ, {"TZN_BACKEND": "triton"}),
        torch.no_grad(),
        _Recorder(found),
    ):
        yield found


def whole_inference(
    steps: int, batch: int = 1, *, dtype: torch.dtype = torch.bfloat16, compile_only: Callable[..., Any] | None = None,
    network: Mapping[str, Any] | None = None, **changes: Any,
) -> list[Launch]:  # fmt: skip
    """Launches of one :func:`tzn.inference.fixed.detect` of the network of the THUMOS14 configuration.

    Args:
        dtype: of the network and its features.
        network: what its configuration has in place of the refinement blocks.
        changes: of the inference configuration.
    """
    from benchmarks.lib.contenders import CLASSES, INFERENCE, INPUT_DIM, LAYERS
    from tzn.inference.fixed import detect
    from tzn.models import TemporalZoomNet, TemporalZoomNetConfig

    with torch.device("meta"):
        given = {"refinement_layers": LAYERS} if network is None else dict(network)
        config = TemporalZoomNetConfig(input_dim=INPUT_DIM, num_classes=CLASSES, **given)
        model = TemporalZoomNet(config).eval().to(dtype)
        features = torch.zeros(batch, steps, INPUT_DIM, dtype=dtype)
        mask = torch.ones(batch, steps, dtype=torch.bool)
    settings = INFERENCE.replace(**changes)
    with recorded():
        detect(model, features, mask, settings)  # makes what is kept from one call to the next, before a capture
    with recorded(compile_only) as found:
        detect(model, features, mask, settings)
    return found


def block_backward(
    steps: int, batch: int = 1, *, dtype: torch.dtype = torch.bfloat16, compile_only: Callable[..., Any] | None = None
) -> list[Launch]:
    """Launches of the backward pass of one gated block of that network, which is most of a training step's."""
    from benchmarks.lib.contenders import CLASSES, INPUT_DIM
    from tzn.kernels import variable_depth_block as kernels
    from tzn.models import TemporalZoomNetConfig
    from tzn.nn import VariableDepthBlock

    c = TemporalZoomNetConfig(input_dim=INPUT_DIM, num_classes=CLASSES)
    with torch.device("meta"):
        weights = [w.detach().to(dtype) for w in VariableDepthBlock(c.width, c.num_heads, c.window).weights()]
        x, gate = torch.zeros(batch, steps, c.width, dtype=dtype), torch.ones(batch, steps)
        mask = torch.ones(batch, steps, dtype=torch.bool)
    with recorded():
        out, kept = kernels.forward(x, gate, weights, mask, keep=True)
    with recorded(compile_only) as found:
        kernels.backward(out, x, gate, weights, kept)
    return found
