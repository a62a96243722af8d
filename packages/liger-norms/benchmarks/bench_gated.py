"""Gated RMSNorm: rows and peers of `python -m liger_core.bench run norms`.

Eager is the reference with the roundings of transformers, of which PyTorch has no operation.
"""

from liger_core.bench import Family, Peer, Row

GROUP = 1024


def fla_norm_first():
    from fla.modules.norm.fused_norm_gate import rms_norm_gated

    return lambda x, gate, weight: rms_norm_gated(x, gate, weight, None, "swish", eps=1e-6)


def fla_gate_first():
    from fla.modules.norm.layernorm_gated import rmsnorm_fn

    return lambda x, gate, weight: rmsnorm_fn(
        x, weight, None, gate, eps=1e-6, group_size=GROUP, norm_before_gate=False
    )


FAMILY = Family(
    rows=(
        Row(
            "gated_rms_norm",
            (8192, 4096),
            small=(16, 2 * GROUP),
            name="gated_rms_norm, gate first",
            note="4 groups",
            options={"group_size": GROUP, "norm_before_gate": False, "cast": "before"},
            readme=True,
        ),
        Row(
            "gated_rms_norm",
            (262144, 128),
            small=(64, 32),
            note="norm first",
            options={"cast": "before"},
            readme=True,
        ),
    ),
    peers={
        "gated_rms_norm, gate first": (Peer("fla", fla_gate_first, "fla-core"),),
        "gated_rms_norm": (Peer("fla", fla_norm_first, "fla-core"),),
    },
)
