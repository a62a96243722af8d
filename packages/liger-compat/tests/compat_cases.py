"""Every function and module of the library beside its formula in PyTorch."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import formulas
import torch
import torch.nn.functional as F

B, T, D, M, N, V, H = 2, 3, 8, 6, 8, 11, 4
CONFIG = SimpleNamespace(
    hidden_size=H, intermediate_size=5, hidden_act="silu", mlp_multipliers=(0.5, 2.0)
)
GELU = SimpleNamespace(hidden_size=H, intermediate_size=5, hidden_act="gelu_pytorch_tanh")


class Case(NamedTuple):
    """A function's name with its options, or a module's with the arguments of its constructor;
    the formula (of a module: of it and the inputs); how to make the inputs, by name.
    """

    name: str
    options: dict[str, Any]
    formula: Any
    inputs: str
    arguments: tuple[Any, ...] = ()


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def labels():
    return torch.tensor([3, -100, 0, V - 1, 5, -100])


INPUTS = {
    "x": lambda: normal(B, T, N),
    "residual": lambda: normal(B, T, N),
    "weight": lambda: normal(N),
    "scale": lambda: normal(B, 1, N),
    "image": lambda: normal(B, N, 5),
    "three": lambda: normal(3),
    "one": lambda: normal(1),
    "gate": lambda: normal(M, N),
    "up": lambda: normal(M, N),
    "hidden": lambda: normal(B, T, H),
    "q": lambda: normal(B, 2, T, D),
    "k": lambda: normal(B, 1, T, D),
    "q_by_token": lambda: normal(B, T, 2, D),
    "k_by_token": lambda: normal(B, T, 1, D),
    "table": lambda: normal(1, T, D),
    "half_table": lambda: normal(1, T, D // 2),
    "axes": lambda: normal(3, B, T, D),
    "q_vision": lambda: normal(T, 2, D),
    "vision_table": lambda: normal(T, D),
    "freqs": lambda: torch.polar(torch.ones(B, T, D // 2).double(), normal(B, T, D // 2)),
    "logits": lambda: normal(M, V),
    "teacher_logits": lambda: normal(M, V),
    "labels": labels,
    "tokens": lambda: normal(M, H),
    "head": lambda: normal(V, H),
    "bias": lambda: normal(V),
    "teacher_tokens": lambda: normal(M, 3),
    "teacher_head": lambda: normal(V, 3),
    "log_q": lambda: normal(M, V).log_softmax(-1),
    "log_p": lambda: normal(M, V).log_softmax(-1),
    "p": lambda: normal(M, V).softmax(-1),
    "p2": lambda: normal(M, V).softmax(-1),
    "sequences": lambda: normal(B, 3, V),
    "sequence_labels": lambda: labels().view(B, 3),
}
# tables and teachers, to which no gradient flows
CONSTANT = {
    "table", "half_table", "axes", "vision_table", "freqs", "log_p", "p2", "teacher_logits",
    "teacher_tokens", "teacher_head",
}  # fmt: skip


def of_head(loss):
    return lambda x, w, t, *b, **options: loss(F.linear(x, w, *b), t, **options)


linear = of_head(formulas.cross_entropy)
gelu = {"act": lambda x: F.gelu(x, approximate="tanh")}
FUNCTIONS = [
    Case("rms_norm", {}, formulas.rms, "x weight", (1e-6,)),
    Case("rms_norm", {"offset": 1.0, "casting_mode": "gemma", "in_place": False},
         lambda x, w: formulas.rms(x, w + 1), "x weight", (1e-6,)),
    Case("rms_norm", {"casting_mode": "none"}, lambda x, w: formulas.rms(x, w, 1e-2), "x weight",
         (1e-2,)),
    Case("fused_add_rms_norm", {}, lambda x, r, w: (formulas.rms(x + r, w), x + r),
         "x residual weight", (1e-6,)),
    Case("modulated_rms_norm", {"offset": 1.0},
         lambda x, w, s: formulas.rms(x, w + 1) * (1 + s), "x weight scale"),
    Case("modulated_rms_norm", {"in_place": True},
         lambda x, w, s, b: formulas.rms(x, w) * (1 + s) + b, "x weight scale scale"),
    Case("layer_norm", {}, lambda x, w, b: F.layer_norm(x, (N,), w, b, 1e-6), "x weight weight",
         (1e-6,)),
    Case("group_norm", {}, lambda x, w, b: F.group_norm(x, 4, w, b, 1e-6), "image weight weight",
         (N, 4, 1e-6)),
    Case("poly_norm", {"in_place": True}, formulas.poly, "x three one"),
    Case("dyt", {}, lambda x, a, g, b: g * torch.tanh(a * x) + b, "x one weight weight"),
    Case("swiglu", {}, lambda a, b: F.silu(a) * b, "gate up"),
    Case("geglu", {}, lambda a, b: F.gelu(a, approximate="tanh") * b, "gate up"),
    Case("relu_squared", {}, lambda x: F.relu(x).square(), "x"),
    Case("softmax", {}, lambda x: x.softmax(-1), "x"),
    Case("rope", {}, formulas.rotated, "q k table table"),
    Case("rope", {"unsqueeze_dim": 2}, lambda *a: formulas.rotated(*a, dim=2),
         "q_by_token k_by_token table table"),
    Case("rope", {"rotary_dim": D},
         lambda q, k, c, s: formulas.rotated(q, k, torch.cat([c, c], -1), torch.cat([s, s], -1)),
         "q k half_table half_table"),
    Case("qwen2vl_mrope", {}, formulas.rotated_by_sections, "q k axes axes", (formulas.SECTIONS,)),
    Case("cross_entropy", {}, formulas.cross_entropy, "logits labels"),
    Case("cross_entropy", {"reduction": "sum", "label_smoothing": 0.1, "lse_square_scale": 0.3,
                           "softcap": 2.0},
         lambda x, t: formulas.cross_entropy(x, t, 0.3, 2.0, "sum", label_smoothing=0.1),
         "logits labels"),
    Case("cross_entropy", {"reduction": "none"},
         lambda x, t: formulas.cross_entropy(x, t, reduction="none"), "logits labels"),
    Case("fused_linear_cross_entropy", {}, linear, "tokens head labels"),
    Case("fused_linear_cross_entropy",
         {"label_smoothing": 0.1, "lse_square_scale": 0.3, "softcap": 2.0, "reduction": "sum",
          "accum_dtype": torch.float32},
         lambda *a: linear(*a, z=0.3, cap=2.0, reduction="sum", label_smoothing=0.1),
         "tokens head labels bias"),
    Case("fused_linear_cross_entropy", {"reduction": "none"},
         lambda *a: linear(*a, reduction="none"), "tokens head labels"),
    Case("fused_linear_cross_entropy", {"use_token_scaling": True},
         of_head(formulas.scaled_by_probability), "tokens head labels"),
    Case("fused_linear_scaled_cross_entropy_tp", {"tp_group": None, "temperature": 2.0},
         lambda x, w, t: linear(x / 2, w, t, reduction="none"), "tokens head labels"),
    Case("kl_div", {}, formulas.kl, "log_q p2"),
    Case("kl_div", {"reduction": "none"}, lambda q, p: formulas.kl(q, p, "none"), "log_q p2"),
    Case("kl_div", {"reduction": "batchmean", "log_target": True},
         lambda q, p: formulas.kl(q, p.exp(), "batchmean"), "log_q log_p"),
    *(Case("jsd", {"beta": b}, lambda *a, b=b: formulas.jsd(*a, beta=b), "log_q log_p labels")
      for b in (0.0, 0.3, 1.0)),
    Case("jsd", {}, formulas.jsd, "log_q log_p"),
    *(Case("tvd", {"reduction": r}, lambda *a, r=r: formulas.tvd(*a, reduction=r), "p p2 labels")
      for r in ("mean", "batchmean", "sum", "none")),
    Case("tvd", {}, formulas.tvd, "p p2"),
    Case("fused_linear_jsd", {"jsd_beta": 0.3, "temperature": 2.0},
         lambda *a: formulas.head_jsd(*a, beta=0.3, temperature=2.0),
         "tokens head teacher_tokens teacher_head labels"),
    Case("fused_linear_kl_div", {}, formulas.head_kl, "tokens head p2 labels"),
    Case("fused_linear_kl_div", {"temperature": 2.0, "reduction": "mean"},
         lambda *a: formulas.head_kl(*a, temperature=2.0) / V, "tokens head p2"),
]  # fmt: skip
MODULES = [
    *(Case(f"LigerRMSNorm{kind}", {}, lambda m, x: formulas.rms(x, m.weight + m.offset), "x", (N,))
      for kind in ("", "ForMuseGlimmer", "ForMuseGlimmerTextCentered")),
    Case("LigerRMSNorm", {"elementwise_affine": False, "row_mode": True},
         lambda m, x: formulas.rms(x), "x", (N,)),
    Case("LigerRMSNormForMuseGlimmer", {"with_scale": False}, lambda m, x: formulas.rms(x), "x"),
    Case("LigerLayerNorm", {"bias": True, "backend": "triton"},
         lambda m, x: F.layer_norm(x, (N,), m.weight, m.bias, 1e-6), "x", (N,)),
    Case("LigerGroupNorm", {"bias": True},
         lambda m, x: F.group_norm(x, 4, m.weight, m.bias, 1e-6), "image", (N, 4)),
    Case("LigerFusedAddRMSNorm", {},
         lambda m, x, r: (formulas.rms(x + r, m.weight), x + r), "x residual", (N,)),
    Case("LigerModulatedRMSNorm", {},
         lambda m, x, s, b: formulas.rms(x, m.weight) * (1 + s) + b, "x scale scale", (N,)),
    Case("LigerDyT", {}, lambda m, x: m.gamma * torch.tanh(m.alpha * x) + m.beta, "x", (N,)),
    Case("LigerDyT", {"beta": False}, lambda m, x: m.gamma * torch.tanh(m.alpha * x), "x", (N,)),
    Case("LigerPolyNorm", {}, lambda m, x: formulas.poly(x, m.weight, m.bias), "x"),
    Case("LigerSoftmax", {}, lambda m, x: x.softmax(-1), "x"),
    Case("LigerReLUSquared", {}, lambda m, x: F.relu(x).square(), "x"),
    *(Case(name, {}, formulas.mlp, "hidden", (CONFIG,))
      for name in ("LigerSwiGLUMLP", "LigerQwen3MoeSwiGLUMLP", "LigerMLP",
                   "LigerSwiGLUMLPForMuseGlimmer", "LigerTiledSwiGLUMLP")),
    Case("LigerSwiGLUMLP", {"intermediate_size": 3}, formulas.mlp, "hidden", (CONFIG,)),
    *(Case(name, {}, lambda m, x: formulas.mlp(m, x, before=0.5, after=2.0), "hidden", (CONFIG,))
      for name in ("LigerFalconH1SwiGLUMLP", "LigerFalconH1MLP")),
    Case("LigerBlockSparseTop2MLP", {}, lambda m, x: m.w2(F.silu(m.w1(x)) * m.w3(x)), "hidden",
         (CONFIG,)),
    Case("LigerPhi3SwiGLUMLP", {},
         lambda m, x: m.down_proj(F.silu(m.gate_up_proj(x)[..., :5]) * m.gate_up_proj(x)[..., 5:]),
         "hidden", (CONFIG,)),
    Case("LigerGEGLUMLP", {}, lambda m, x: formulas.mlp(m, x, **gelu), "hidden", (GELU,)),
    Case("LigerTiledGEGLUMLP", {"num_shards": 2}, lambda m, x: formulas.mlp(m, x, **gelu),
         "hidden", (GELU,)),
    Case("LigerCrossEntropyLoss", {"label_smoothing": 0.1, "softcap": 2.0},
         lambda m, x, t: formulas.cross_entropy(x, t, cap=2.0, label_smoothing=0.1),
         "logits labels"),
    Case("LigerFusedLinearCrossEntropyLoss", {"lse_square_scale": 0.1},
         lambda m, w, x, t: linear(x, w, t, z=0.1), "head tokens labels"),
    Case("LigerJSD", {"beta": 0.3}, lambda m, *a: formulas.jsd(*a, beta=0.3),
         "log_q log_p labels"),
    Case("LigerKLDIVLoss", {"reduction": "batchmean"},
         lambda m, *a: formulas.kl(*a, reduction="batchmean"), "log_q p2"),
    Case("LigerTVDLoss", {}, lambda m, *a: formulas.tvd(*a, reduction="batchmean"), "p p2"),
    Case("LigerFusedLinearJSD", {}, lambda m, *a: formulas.head_jsd(*a),
         "tokens head teacher_tokens teacher_head labels"),
    Case("LigerFusedLinearKLDivLoss", {}, lambda m, *a: formulas.head_kl(*a), "tokens head p2"),
    Case("LigerFusedCETVDLoss", {},
         lambda m, x, y, t: (formulas.cross_entropy(x, t, reduction="none"),
                             formulas.tvd(x.softmax(-1), y.softmax(-1), t, "none").sum(-1)),
         "logits teacher_logits labels"),
    Case("LigerVocabParallelCrossEntropy", {"label_smoothing": 0.1},
         lambda m, x, t: F.cross_entropy(x.flatten(0, 1), t.flatten(), reduction="none",
                                         label_smoothing=0.1).view(B, 3),
         "sequences sequence_labels"),
    Case("LigerVocabParallelCrossEntropy",
         {"label_smoothing": 0.1, "label_smoothing_formula": "megatron"},
         lambda m, x, t: F.cross_entropy(x.flatten(0, 1), t.flatten(), reduction="none",
                                         label_smoothing=0.1 * V / (V - 1)).view(B, 3),
         "sequences sequence_labels"),
]  # fmt: skip
ROTATIONS = [
    Case("rope.liger_rotary_pos_emb", {}, formulas.rotated, "q k table table"),
    Case("rope.liger_rotary_pos_emb_gpt_oss", {},
         lambda q, k, c, s: formulas.rotated(q, k, torch.cat([c, c], -1), torch.cat([s, s], -1)),
         "q k half_table half_table"),
    Case("rope.liger_rotary_pos_emb_vision", {}, formulas.rotated,
         "q_vision q_vision vision_table vision_table"),
    Case("qwen2vl_mrope.liger_multimodal_rotary_pos_emb", {}, formulas.rotated_by_sections,
         "q k axes axes", (formulas.SECTIONS,)),
    Case("llama4_rope.liger_llama4_text_rotary_pos_emb", {}, formulas.rotated_in_complex,
         "q_by_token k_by_token freqs"),
]  # fmt: skip


def made(case):
    """Inputs for the library, and the same for the formula."""
    ours, theirs = [], []
    for name in case.inputs.split():
        x = INPUTS[name]()
        for copies in (ours, theirs):
            copy = x.clone()
            if x.is_floating_point() and name not in CONSTANT:
                copy.requires_grad_()
            copies.append(copy)
    return ours, theirs
