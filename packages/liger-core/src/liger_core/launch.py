"""One way to launch a kernel: low host cost in eager mode, plain Triton under torch.compile and in
the interpreter.

Triton binds and hashes every argument of a call in Python. Here a launch is keyed by what the
compiled code depends on (presence and dtype of tensors, their 16-byte alignment, divisibility and
width of integers, constants), and a known key goes straight to the compiled kernel.
"""

from typing import Any

import torch

from .lang import INTERPRET, triton

__all__ = ["launch"]

# a block has at most 1024 threads: 32 warps, 16 of AMD's
_MAX_WARPS = 16 if torch.version.hip else 32
# key -> (Triton's compiled kernel, its launcher, what the launcher takes between the stream and the
# arguments, the constants that complete these)
_compiled: dict[tuple[object, ...], tuple[Any, Any, tuple[object, ...], tuple[object, ...]]] = {}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 3,
    **constants: Any,
) -> None:
    """Run `kernel` over `grid` on the device of its first argument, on the current stream.

    Args:
        kernel: a `triton.jit` function whose constexpr parameters come after all others.
        grid: up to three program counts.
        args: run-time arguments in signature order, the first a tensor: tensors, None, ints,
            floats.
        num_warps: of a program; as many fewer as the largest block of the device demands.
        constants: every constexpr parameter, by name.

    Raises:
        ValueError: a tensor without storage of its own, such as a sharded DTensor.
    """
    first, num_warps = args[0], min(num_warps, _MAX_WARPS)
    if not first.is_cuda:
        args = _plain(args)
    if INTERPRET or torch.compiler.is_compiling():
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constants)
    elif not first.is_cuda:
        with torch.accelerator.device_index(first.get_device()):
            kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constants)
    # a CUDA tensor exists, so CUDA is initialised: the public query would check that once more
    elif (device := first.get_device()) == torch._C._cuda_getDevice():
        _launch_cuda(kernel, grid, args, device, num_warps, num_stages, constants)
    else:
        with torch.cuda.device(device):
            _launch_cuda(kernel, grid, args, device, num_warps, num_stages, constants)


def _plain(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers of NumPy as Python's."""
    return tuple(arg.item() if type(arg).__module__ == "numpy" else arg for arg in args)


def _launch_cuda(
    kernel: Any, grid: Any, args: Any, device: int, num_warps: int, num_stages: int, constants: Any
) -> None:
    key: list[object] = [id(kernel), device, num_warps, num_stages, *constants.values()]
    # tensors as addresses, which the launcher need not ask for and look up again
    values: list[object] = []
    for arg in args:
        kind = type(arg)
        if kind is int:
            # most integers: any but 1 of 32 bits
            usual = -0x80000000 <= arg < 0x80000000 and arg != 1
            key.append(arg & 15 == 0 if usual else (arg == 1, arg & 15 == 0))
        elif arg is None:
            key.append(None)
        elif kind is float:
            key.append(float)
        elif kind.__module__ == "numpy":
            plain = _plain(args)
            return _launch_cuda(kernel, grid, plain, device, num_warps, num_stages, constants)
        else:
            pointer = arg.data_ptr()
            key.append((arg.dtype,) if pointer & 15 else arg.dtype)
            if not pointer and arg.numel():
                shape = tuple(arg.shape)
                raise ValueError(
                    f"a {kind.__name__} of shape {shape} has no storage of its own; "
                    "pass a local tensor"
                )
            arg = pointer
        values.append(arg)
    entry = _compiled.get(tuple(key))
    if entry is None:
        compiled = kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constants)
        # the Nones: metadata and hooks, which only a profiler sets
        handles = compiled.function, compiled.packed_metadata, None, None, None
        rest = tuple(constants[name] for name in kernel.arg_names[len(args) :])
        _compiled[tuple(key)] = compiled, compiled.run, handles, rest
        return
    compiled, run, between, tail = entry
    hooks = triton.knobs.runtime
    stream = torch._C._cuda_getCurrentRawStream(device)
    if getattr(hooks.launch_enter_hook, "calls", None) or getattr(
        hooks.launch_exit_hook, "calls", None
    ):
        compiled[(*grid, 1, 1)[:3]](*args, *tail, stream=stream)
    else:
        run(*(*grid, 1, 1)[:3], stream, *between, *values, *tail)
