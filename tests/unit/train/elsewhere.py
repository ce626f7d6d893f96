"""A device that is this machine's memory under another name, and that refuses to mix with it, as a GPU does.

    with Elsewhere():
        model.to(ELSEWHERE)
        loss = ...                      # real numbers; an operation over tensors here and there raises
    numbers = loss.cpu()

A tensor there holds one here and says that its device is another. The name is `meta`, because torch refuses names of
devices that it was not built for; no meta tensor is ever made. Allowed across devices is what CUDA allows: copies,
indexing by tensors of the CPU, and single numbers. What cannot be seen so: kernels, their limits, and speed.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = "meta"
aten = torch.ops.aten
ACROSS = {
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put_.default,
}


class There(torch.Tensor):
    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cpu",
            requires_grad=held.requires_grad,
        )

    def __init__(self, held):
        self.held = held

    device = property(lambda self: torch.device(ELSEWHERE))
    is_cpu = property(lambda self: False)

    @property
    def data(self):
        return There(self.held.detach())

    @data.setter
    def data(self, value):
        self.held = value.held.detach()

    def cpu(self):
        return self.held.detach()

    def numpy(self):
        raise TypeError("only tensors of the CPU can become arrays")

    def data_ptr(self):
        raise RuntimeError("a loop of the CPU was given memory that is not there")

    def to(self, *where, **options):
        device, dtype = options.get("device"), options.get("dtype")
        for value in where:
            if isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                device = value
        copy = options.get("copy", False)
        if device is not None and torch.device(device).type == "cpu":
            return self.held.detach().to(dtype=dtype or self.dtype, copy=copy)
        return super().to(dtype=dtype or self.dtype, copy=copy)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation, args, kwargs):
    """Do an operation on what tensors hold; its result is where its operands are, or where it was asked to be."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    here = [tensor for tensor in tensors if not isinstance(tensor, There) and tensor.dim()]
    if there and here and operation not in ACROSS:
        raise RuntimeError(f"{operation} mixes devices: {[tuple(tensor.shape) for tensor in here]} are on the CPU")
    asked = kwargs.get("device")
    if asked is not None and not there:
        is_there = torch.device(asked).type == ELSEWHERE
    else:
        is_there = isinstance(args[0], There) if operation in ACROSS else bool(there)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = tree_map(lambda leaf: leaf.held if isinstance(leaf, There) else leaf, (args, kwargs))
    result = operation(*held[0], **held[1])
    name = operation._schema.name
    if isinstance(result, torch.Tensor) and name.endswith("_") and "_foreach" not in name:
        return args[0]
    return tree_map(lambda leaf: There(leaf) if is_there and isinstance(leaf, torch.Tensor) else leaf, result)


class Elsewhere(TorchDispatchMode):
    def __enter__(self):
        self._overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._tensor = torch.tensor

        def tensor(values, *, device=None, **options):
            made = self._tensor(values, **options)
            return made if device is None else made.to(device)

        torch.tensor = tensor  # torch's own would make a meta tensor, without going through this mode.
        return super().__enter__()

    def __exit__(self, *error):
        torch.tensor = self._tensor
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrite)
        return super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})
