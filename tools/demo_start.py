"""How the demo model begins: with heads that copy.

To copy and to find, a model must know of each token what came before it, and compare that
with the end of what it reads (an induction head, Olsson et al., arXiv 2209.11895). Left to
itself a model of this size hits on that late. So it is initialised like a model that has
(after Trockman and Kolter, arXiv 2305.09828): heads of the first layer look one, two and
three tokens back, heads of the second one look for what followed the same tokens before,
and say it. All that is left to training, which may change every weight.
"""

import math

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

CONSTANT = 0.5  # part of every embedding, from which positions are made
CODE = 32  # dimensions in which a token is told apart from others
LOOKING = 6.5  # length of a query that looks back: the next token scores five less
FAST, SLOW = slice(0, 4), slice(9, None)  # rotary pairs: for places, and for contents
READ, WRITTEN = 0.55, 0.25  # gains of what the first layer passes on
MATCHED = 4.0  # gain of a comparison
SAID = 2.5  # gain of what is copied


@torch.no_grad()
def begin(model: LlamaForCausalLM) -> None:
    """Initialise a model in place; `torch.manual_seed` makes it repeatable."""
    for layer in model.model.layers:  # as in GPT-2: many layers add up
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            matrix.weight /= math.sqrt(2 * model.config.num_hidden_layers)
    token, *passed = _directions(model.config.hidden_size)
    _look_back(model, token, passed)
    _look_for(model.model.layers[1].self_attn, token, passed)


def _look_back(model: LlamaForCausalLM, token: Tensor, passed: list[Tensor]) -> None:
    """One head for each of `passed`: what is said there is passed on.

    All embeddings get a constant part, of which queries and keys make a fixed angle; the
    rotary embedding turns that by the distance.
    """
    attention = model.model.layers[0].self_attn
    embeddings = model.model.embed_tokens.weight
    embeddings[:, 0] = CONSTANT
    constant = CONSTANT / embeddings.square().mean(1).sqrt().mean()  # once normalised
    speeds = model.model.rotary_emb.inv_freq[FAST]  # radians per token
    key, value = (_rows(p.weight, 0) for p in (attention.k_proj, attention.v_proj))
    _pairs(key, FAST)[0, :, 0] = LOOKING / constant
    _pairs(key, FAST)[1, :, 0] = 0
    value[:] = READ * token
    for head, code in enumerate(passed):
        angles = speeds * (head + 1)
        query = _pairs(_rows(attention.q_proj.weight, head), FAST)
        query[0, :, 0] = LOOKING / constant * angles.cos()
        query[1, :, 0] = -LOOKING / constant * angles.sin()
        _columns(attention.o_proj.weight, head)[:] = WRITTEN * code.T


def _look_for(attention: LlamaAttention, token: Tensor, passed: list[Tensor]) -> None:
    """One head for what followed this token before, one for what followed the last two."""
    last, before, _ = passed
    for kv_head, num_compared in enumerate((1, 2)):
        head = kv_head * attention.num_key_value_groups
        query = _pairs(_rows(attention.q_proj.weight, head), SLOW)
        key = _pairs(_rows(attention.k_proj.weight, kv_head), SLOW)
        query[:], key[:] = 0, 0
        for wanted, seen in ((token, last), (last, before))[:num_compared]:
            mixed = MATCHED * _orthogonal(query[..., 0].numel(), CODE)
            query += (mixed @ wanted).view_as(query)
            key += (mixed @ seen).view_as(key)
        _rows(attention.v_proj.weight, kv_head)[:] = SAID * token
        _columns(attention.o_proj.weight, head)[:] = SAID * token.T


def _directions(hidden_size: int) -> list[Tensor]:
    """What says a token, and what says those one, two and three before it:
    [CODE, hidden] each, orthonormal, and without the constant part."""
    basis = _orthogonal(hidden_size - 1, hidden_size - 1)
    padded = torch.cat([torch.zeros(hidden_size - 1, 1), basis], dim=1)
    return list(padded[: 4 * CODE].split(CODE))


def _orthogonal(rows: int, columns: int) -> Tensor:
    return torch.nn.init.orthogonal_(torch.empty(rows, columns))


def _rows(weight: Tensor, head: int) -> Tensor:
    return weight[CODE * head : CODE * (head + 1)]


def _columns(weight: Tensor, head: int) -> Tensor:
    return weight[:, CODE * head : CODE * (head + 1)]


def _pairs(rows: Tensor, which: slice) -> Tensor:
    """The rows of one head as rotary pairs: [2, pairs, hidden]."""
    return rows.view(2, CODE // 2, -1)[:, which]
