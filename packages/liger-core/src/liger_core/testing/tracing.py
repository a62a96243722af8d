"""What torch.compile traces of an op on a GPU, without one: its kernels on tensors of the CPU."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils import _triton

from .. import device

__all__ = ["traced_kernels"]


class _Traced(Exception):
    """Stands for the compiler that would come after the trace."""


def traced_kernels(function: Callable[..., Any], dynamic: bool, **arguments: Any) -> list[str]:
    """Targets in the graph that `torch.compile(function, fullgraph=True)` makes of a call with
    these arguments, forward and backward, that are kernels or operators of ours.

    Raises:
        torch._dynamo.exc.TorchDynamoException: what cannot be traced.
    """
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs = [m for m in graph.modules() if isinstance(m, torch.fx.GraphModule)]
        targets = [str(node.target) for g in graphs for node in g.graph.nodes]
        found.extend(t for t in targets if t.startswith(("triton_kernel_wrapper", "liger_")))
        raise _Traced

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
    with _kernels_on_cpu():
        try:
            compiled(**arguments)
        except torch._dynamo.exc.BackendCompilerFailed as failure:
            if not isinstance(failure.inner_exception, _Traced):
                raise
    return found


@contextlib.contextmanager
def _kernels_on_cpu() -> Iterator[None]:
    """Ops choose their kernels, and Dynamo knows them as such."""
    with (
        mock.patch.object(device, "INTERPRET", True),
        mock.patch.dict(device._NUM_SMS, {torch.empty(0).get_device(): 132}),
        mock.patch.object(_triton, "has_triton", return_value=True),
    ):
        yield
