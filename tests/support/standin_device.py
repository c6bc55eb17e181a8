"""A device that is not the CPU, on any machine: its memory is the CPU's, its kernels are the CPU's, its rules are CUDA's.

Importing this makes torch's spare device, `standin`, usable in this process, so it belongs in a process of its own. A
mixture of devices, a generator of another device and `.numpy()` are errors as on CUDA; `WAITS` names every call that
would make the process wait for a GPU. What a GPU computes otherwise (rounding, its own kernels) it does not show.
"""

from __future__ import annotations

import ctypes
import functools
import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.dlpack import from_dlpack, to_dlpack

NAME = "standin"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # torch says: experimental
WAITS: list[str] = []

_OF_DLPACK = {"cpu": 1, NAME: 12}
_MASKED = (
    "index.Tensor",
    "_unsafe_index.Tensor",
    "index_put.default",
    "index_put_.default",
    "_index_put_impl_.default",
)
_ALIKE = ("cat", "stack", "mm", "bmm", "addmm", "index_select", "gather", "scatter")  # take no number of the CPU either
_COUNTING = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal")
_COUNTING += ("_local_scalar_dense", "_linalg_eigh", "_linalg_svd", "linalg_lstsq", "repeat_interleave")
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _moved(tensor: Tensor, device: str) -> Tensor:
    """The same memory, said to lie on the other device."""
    capsule = to_dlpack(tensor.resolve_conj().resolve_neg() if tensor.is_cpu else tensor)
    ctypes.cast(_pointer(capsule, b"dltensor") + 8, ctypes.POINTER(ctypes.c_int32))[0] = _OF_DLPACK[device]
    return from_dlpack(capsule)


def _there(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _wait(what: str) -> None:
    ours = [f for f in traceback.extract_stack() if "/toolkit/" in f.filename]
    WAITS.append(f"{what} at {ours[-1].filename.split('/toolkit/')[-1]}:{ours[-1].lineno}" if ours else what)


def _check(op: Any, args: tuple[Any, ...], leaves: list[Any]) -> None:
    name, full = op._schema.name.split("::")[1], op.__name__
    indices = full in _MASKED and _there(args[0])  # CUDA takes indices from the CPU, and waits for them
    strict = 0 if name in _ALIKE else 1
    here = [x for x in leaves if isinstance(x, Tensor) and x.is_cpu and x.ndim >= strict]
    if here and any(map(_there, leaves)) and not indices:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME} and cpu ({full}).")
    if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in leaves):
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu' ({full}).")
    masks = full in _MASKED and any(isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1]))
    if name in _COUNTING or masks or (here and indices):
        _wait(full)


def _kernel(op: Any, *args: Any, **kwargs: Any) -> Any:
    leaves, spec = tree_flatten((args, kwargs))
    _check(op, args, leaves)
    cpu = torch.device("cpu")
    lowered = [_moved(x, "cpu") if _there(x) else cpu if isinstance(x, torch.device) else x for x in leaves]
    args, kwargs = tree_unflatten(lowered, spec)
    kwargs.pop("pin_memory", None)
    name = op._schema.name.split("::")[1]
    if name == "convolution_backward_overrideable":
        weight, transposed, groups = args[2], args[6], args[8]
        args = (*args[:3], [weight.shape[1] * groups if transposed else weight.shape[0]], *args[3:])
    other = {
        "convolution_overrideable": torch.ops.aten.convolution.default,
        "convolution_backward_overrideable": torch.ops.aten.convolution_backward.default,
    }
    result = other.get(name, op)(*args, **kwargs)
    given = {id(x): y for x, y in zip(lowered, leaves, strict=True)}  # what was written in place comes back itself
    return tree_map(lambda x: given.get(id(x), _moved(x, NAME)) if isinstance(x, Tensor) else x, result)


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if source.device != target.device and not (non_blocking and _there(target)):
        _wait(f"copy from {source.device.type} to {target.device.type}")
    ends = [(_moved(x, "cpu") if _there(x) else x).detach() for x in (target, source)]
    ends[0].copy_(ends[1])
    return target


def _deepcopy(usual: Any, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if not _there(tensor):
        return usual(tensor, memo)
    if id(tensor) not in memo:
        twin, weight = tensor.detach().clone(), isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(twin, tensor.requires_grad) if weight else twin
    return memo[id(tensor)]


def _register() -> list[torch.library.Library]:
    """Python kernels for whatever the CPU has a kernel of, or would write into a tensor that it makes first."""
    module = backend_registration._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)
    has, library = torch._C._dispatch_has_kernel_for_dispatch_key, torch.library.Library("aten", "IMPL", "PrivateUse1")
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    written = {name.partition(".")[0] for name in names if "out" in name.partition(".")[2] and has(name, "CPU")}
    for name in names:
        packet, _, overload = name.removeprefix("aten::").partition(".")
        made = has(name, "CompositeExplicitAutograd") and f"aten::{packet}" in written and "out" not in overload
        if (made or has(name, "CPU") or "overrideable" in name or packet == "logsumexp") and packet not in (
            "copy_",
            "_copy_from",
        ):
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(op, functools.partial(_kernel, op))
    library.impl("_copy_from", _copy)
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(_kernel, "PrivateUse1")
    for kind in (torch.nn.Parameter, Tensor):
        usual = functools.partial(_deepcopy, kind.__deepcopy__)
        kind.__deepcopy__ = lambda tensor, memo, usual=usual: usual(tensor, memo)  # type: ignore[method-assign]
    return [library, rest]


LIBRARIES = _register() if AVAILABLE else []  # as long as they live
