"""PolyNorm: rows and peers of `python -m liger_core.bench run norms`."""

import torch
from liger_core.bench import Family, Peer, Row


def inputs(new, shape):
    """The bias has no dimension: liger-kernel takes no other."""
    return {"x": new.normal(*shape), "weight": new.normal(3), "bias": new.normal()}


def norm(u):
    return u * torch.rsqrt(u.square().mean(-1, keepdim=True) + 1e-6)


def eager():
    """The module of the paper, its powers in fp32."""

    def function(x, weight, bias):
        z = x.float()
        terms = (w * norm(z**power) for w, power in zip(weight, (3, 2, 1), strict=True))
        return (sum(terms) + bias).to(x.dtype)

    return function


def liger_kernel():
    from liger_kernel.transformers.functional import liger_poly_norm

    return lambda x, weight, bias: liger_poly_norm(x, weight, bias, 1e-6)


FAMILY = Family(
    rows=(Row("poly_norm", (8192, 4096), small=(64, 128), inputs=inputs, readme=True),),
    peers={
        "poly_norm": (
            Peer("eager", eager),
            # writes the gradient of x over the incoming one
            Peer("liger-kernel", liger_kernel, "liger-kernel", inplace=True),
        )
    },
)
