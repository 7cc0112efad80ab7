"""How the demo model begins: with heads that copy.

To copy and to find, a model must know of each token what came before it, and compare that
with the end of what it reads (an induction head, Olsson et al., arXiv 2209.11895). Left to
itself a model of this size hits on that late. So it is initialised like a model that has
(after Trockman and Kolter, arXiv 2305.09828): heads of the first layer look one, two and
three tokens back, heads of the second look for what followed the same tokens before, and
one, where an answer begins, for what stood two before the end of the question ("Who likes
jogging?" asks for what stands before "likes jogging"); they say what they find. All else
begins silent, and all is left to training, which may change every weight.
"""

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
ANSWERED = 1.5  # gain of what an answer may begin with


@torch.no_grad()
def begin(model: LlamaForCausalLM) -> None:
    """Initialise a model in place; `torch.manual_seed` makes it repeatable."""
    for layer in model.model.layers:  # what is random would drown what is not
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            matrix.weight.zero_()
    token, *passed = _directions(model.config.hidden_size)
    last, before, long_before = passed
    _look_back(model, token, passed)
    second = model.model.layers[1].self_attn
    said, answered = SAID * token, ANSWERED * token
    _look_for(second, 0, (last,), [(long_before,)], ANSWERED * long_before, answered)
    _look_for(second, 1, (last, before), [(token, last), (token,)], said, said)


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


def _look_for(
    attention: LlamaAttention,
    kv_head: int,
    there: tuple[Tensor, ...],
    wanted: list[tuple[Tensor, ...]],
    read: Tensor,
    written: Tensor,
) -> None:
    """One head for each of `wanted`: it looks for where the same is said `there`, and
    writes what it reads there.
    """
    key = _pairs(_rows(attention.k_proj.weight, kv_head), SLOW)
    mixed = [MATCHED * _orthogonal(key[..., 0].numel(), CODE) for _ in there]
    key[:] = _sum(mixed, there).view_as(key)
    _rows(attention.v_proj.weight, kv_head)[:] = read
    for number, mine in enumerate(wanted):
        head = kv_head * attention.num_key_value_groups + number
        query = _pairs(_rows(attention.q_proj.weight, head), SLOW)
        query[:] = _sum(mixed, mine).view_as(query)
        _columns(attention.o_proj.weight, head)[:] = written.T


def _sum(mixed: list[Tensor], codes: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([m @ c for m, c in zip(mixed, codes, strict=False)]).sum(0)


def _directions(hidden_size: int) -> list[Tensor]:
    """What says a token, and what says those one, two and three before it:
    [CODE, hidden] each, orthonormal, and without the constant part.
    """
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
