"""A language model small enough for a CPU, and the toy task: even tokens are good, odd ones bad.

The losses need its hidden states and its head's weight. Of a Hugging Face model these are
`model.model(ids).last_hidden_state` and `model.lm_head.weight`.
"""

import torch
from torch import Tensor, nn

V, PROMPT, T = 64, 4, 12


class TinyModel(nn.Module):
    def __init__(self, hidden_size: int = 64):
        super().__init__()
        self.tokens = nn.Embedding(V, hidden_size)
        self.positions = nn.Embedding(PROMPT + T, hidden_size)
        self.layer = nn.TransformerEncoderLayer(
            hidden_size, 4, 2 * hidden_size, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, V, bias=False)

    def hidden(self, ids: Tensor) -> Tensor:
        """[B, L] -> [B, L, H]: what the head turns into logits of the next token."""
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.norm(self.layer(x, mask, is_causal=True))

    @torch.no_grad()
    def sample(self, prompts: Tensor) -> Tensor:
        """Prompts [B, PROMPT] continued by T tokens."""
        ids = prompts
        for _ in range(T):
            logits = self.head(self.hidden(ids)[:, -1])
            ids = torch.cat([ids, logits.softmax(-1).multinomial(1)], 1)
        return ids


def prompts(batch: int) -> Tensor:
    return torch.randint(V, (batch, PROMPT))


def responses(batch: int, remainder: int) -> Tensor:
    """Tokens that are even (0) or odd (1), of which one in four is not."""
    ids = 2 * torch.randint(V // 2, (batch, T)) + remainder
    return torch.where(torch.rand(batch, T) < 0.25, ids ^ 1, ids)


def next_tokens(ids: Tensor) -> Tensor:
    """Targets of the hidden states but the last: tokens of responses, -100 for those of prompts."""
    target = ids[:, 1:].clone()
    target[:, : PROMPT - 1] = -100
    return target


def share_of_even(ids: Tensor) -> Tensor:
    return (ids[:, PROMPT:] % 2 == 0).float().mean(-1)
