"""A pretended device for machines without a GPU: `device="cuda"` runs, and mixing devices is an error, as on a GPU.

PyTorch reserves one device (`PrivateUse1`) for external backends. Here it is a backend without hardware: its tensors
hold values in main memory, the CPU's kernels compute every operator on them, and the results are on the device again.
Results must therefore equal those of the CPU, up to rounding where PyTorch decomposes an operator differently. It
refuses operations that a GPU refuses:

- tensors on two devices in one operator; as on a GPU, elementwise operators read a CPU tensor without dimensions, CPU
  indices may index a device's tensor, and copies cross;
- a generator on another device than the tensor that it fills;
- conversion of a device's tensor to NumPy;
- matrices of 8 bits whose products have sizes that no kernel takes (`ALIGNED`);
- an optimizer's state on the CPU in a fused step (`_fused_adamw_` is not elementwise).

All of PyTorch, including autograd and its checks, sees the reserved device. Python code sees `cuda`: a function mode
translates the name in arguments, and `Tensor.device` translates it back.

Not modeled: streams (`torch.cuda.synchronize` does nothing), memory, kernels that a GPU lacks or rounds otherwise (but
for least squares, of which it has one), a generator's own numbers, and processes (NCCL).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "npu"  # a name for the reserved device that safetensors supports


class _NoHardware:
    """The backend module that PyTorch queries; it reports no device, so that other tests in this process see none."""

    is_initialized = is_available = _is_in_bad_fork = staticmethod(lambda: False)
    current_device = device_count = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)


_setup_privateuseone_for_python_backend(NAME, _NoHardware())  # once per process, irreversibly
BODY, FACE, CPU = torch.device(NAME, 0), torch.device("cuda", 0), torch.device("cpu")

aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy, aten._copy_from}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
ALIGNED = {aten._int_mm: (17, 8), aten._scaled_mm: (1, 16)}  # least rows of the first factor; divisor of other sizes
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, ATTENTION, *ALIGNED}
ONLY = {aten.linalg_lstsq: {"driver": "gels"}}  # drivers that a GPU supports
FILLING = {aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_, aten.index_put, aten.index_put_}


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device; ``inner`` is a CPU tensor with its value."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        self = torch.Tensor._make_subclass(cls, inner.detach(), dispatch_device=True, device_for_backend_keys=BODY)
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, dict(kwargs or {}))

    @property
    def device(self) -> torch.device:
        """The device `cuda` for the code under test; the reserved device for PyTorch's Python code."""
        return BODY if _Renaming.depth else FACE

    @property
    def is_cuda(self) -> bool:
        return self.device == FACE

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner  # type: ignore[attr-defined]

    # Methods that PyTorch refuses for subclasses or dispatches on their type, with the behavior of a GPU:

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: dict) -> DeviceTensor:
        if not self.is_leaf:
            raise RuntimeError("only tensors that the user made can be copied deeply")
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if hasattr(self, "_is_param"):
            copied._is_param = True  # type: ignore[attr-defined]
        return memo.setdefault(id(self), copied)

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner!r} on the device"

    def __format__(self, form: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), form)


def _mapped(change: Callable, value: Any) -> Any:
    """Apply ``change`` to every leaf of an operator's arguments or results."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(change, part) for part in value)
    return change(value)


def _tensors(values: Any) -> list[torch.Tensor]:
    """Return the tensors among an operator's arguments."""
    if isinstance(values, torch.Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, (list, tuple)) else []


def _refuse(func: Any, args: tuple, kwargs: dict, target: torch.device) -> None:
    """Raise the error that a GPU raises for these arguments, if any."""
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != target.type:
        raise RuntimeError(f"Expected a '{target}' device type for generator but found '{generator.device}' ({func})")
    packet, together = func.overloadpacket, [(*args, *kwargs.values())]
    if packet in ALIGNED:
        rows, divisor = ALIGNED[packet]
        if len(args[0]) < rows or any(size % divisor for size in (args[0].shape[1], *args[1].shape)):
            raise RuntimeError(f"{func}: no kernel for {tuple(args[0].shape)} x {tuple(args[1].shape)}")
    if packet in COPIES:
        return
    if packet in INDEXING and isinstance(args[0], DeviceTensor):
        together = [(args[0], *args[2:])]  # the indices may be on the CPU
    elif packet.__name__.startswith("_foreach_") and packet.__name__.endswith("_"):
        # Lists that change in place, such as an optimizer's counts of steps, are checked element by element.
        lists = [arg for arg in args if isinstance(arg, list)]
        others = [arg for arg in args if not isinstance(arg, list)]
        together = [(*parts, *others) for parts in zip(*lists, strict=True)]
    in_place = args[:1] if packet.__name__.endswith("_") else (kwargs.get("out"),)
    into_cpu = any(not isinstance(tensor, DeviceTensor) for tensor in _tensors(in_place))
    scalars = (packet in FILLING or torch.Tag.pointwise in func.tags) and not into_cpu  # they are read only
    for values in together:
        tensors = _tensors(values)
        left = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
        if len(left) < len(tensors) and any(tensor.dim() or not scalars for tensor in left):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({func}, on the CPU: {', '.join(str(tuple(tensor.shape)) for tensor in left)})"
            )


@functools.cache
def _is_made_of_others(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


_products: Counter[str] = Counter()


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """Run an operator on the CPU values, and return the results on the target device."""
    if func is torch.ops.prim.device.default:
        return BODY
    if _is_made_of_others(func):  # only in inference mode is it not decomposed before
        with _Values():
            return func.decompose(*args, **kwargs)
    inputs = [tensor for tensor in _tensors((*args, *kwargs.values())) if isinstance(tensor, DeviceTensor)]
    target = kwargs.get("device") or (BODY if inputs else CPU)
    kwargs.pop("pin_memory", None)
    if func.overloadpacket in PRODUCTS:
        _products[target.type if target == CPU else FACE.type] += 1
    if not inputs and target == CPU:
        return func(*args, **kwargs)
    _refuse(func, args, kwargs, target)
    values = {name: CPU if name == "device" else _mapped(_inner, value) for name, value in kwargs.items()}
    results = func(*_mapped(_inner, args), **values, **ONLY.get(func.overloadpacket, {}))
    written = {id(tensor.inner): tensor for tensor in inputs}  # an operator in place, or with `out`, returns these

    def put(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if (argument := written.get(id(value))) is not None:
            if argument.shape != value.shape:
                raise NotImplementedError(f"{func} changes a shape in place")
            return argument
        return DeviceTensor(value) if target.type == NAME else value

    return _mapped(put, results)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value


class _Values(TorchDispatchMode):
    """Intercepts operators without tensor arguments, such as `torch.zeros`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Renaming(TorchFunctionMode):
    """Translates `cuda` in arguments; ``depth`` is positive inside PyTorch's Python code."""

    depth = 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.device:  # constructs a name only, for example when one is copied
            return func(*args, **(kwargs or {}))
        _Renaming.depth += 1
        try:
            return func(*map(_renamed, args), **{name: _renamed(value) for name, value in (kwargs or {}).items()})
        finally:
            _Renaming.depth -= 1


def _renamed(value: Any) -> Any:
    return BODY if isinstance(value, str | torch.device) and str(value) in ("cuda", "cuda:0") else value


@contextmanager
def pretend() -> Iterator[Counter[str]]:
    """Make `cuda` a device in this thread; yield the counts of matrix products on `cuda` and on `cpu` meanwhile."""
    _products.clear()
    lifts, swaps = torch._C._only_lift_cpu_tensors(), torch.__future__.get_swap_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)  # makes `torch.tensor(..., device=...)` a copy that is dispatched
    torch.__future__.set_swap_module_params_on_conversion(True)  # `Module.to` keeps objects, so ties stay
    cuda = {"is_available": lambda: True, "device_count": lambda: 1, "synchronize": lambda *_: None}
    cuda["get_device_capability"] = lambda *_: (9, 0)
    # Gradients run in this thread: autograd fixed its number of device threads at the first gradient of the process.
    one_thread = torch.autograd.set_multithreading_enabled(False)
    try:
        with one_thread, mock.patch.multiple(torch.cuda, **cuda), _Renaming(), _Values():
            yield _products
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_swap_module_params_on_conversion(swaps)
