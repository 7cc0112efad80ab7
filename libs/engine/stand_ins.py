"""Puts faster modules in place of transformers', each kind after a trial.

Knows no module and no device: whoever serves a model says what might stand in for what.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from engine.bfloat16_linear import quick_linear

Candidates = Callable[[nn.Module], Sequence[nn.Module]]

# Few rows and many: the stand-ins may compute them differently.
_TRIAL_ROWS = (1, 3, 32, 56)
# Of the answer's norm: bfloat16 keeps eight bits, and a module rounds several times.
TOLERANCE = 0.02


def replace(model: nn.Module, candidates: Candidates) -> None:
    """Put the first candidate that answers as a module does in that module's place.

    Only modules of bfloat16 are looked at: in float32 a model is transformers' own to
    the last operation.
    """
    _replace_in(model, candidates, {})


def is_bfloat16(module: nn.Module) -> bool:
    """Whether it computes in that type; other forms of weights are for models that do."""
    dtypes = {parameter.dtype for parameter in module.parameters()}
    return dtypes == {torch.bfloat16} or bool(dtypes & {torch.int8, torch.uint8})


def are_equal(found: Tensor, expected: Tensor) -> bool:
    """Whether two answers differ by no more than bfloat16 rounds."""
    found, expected = found.float(), expected.float()
    return bool((found - expected).norm() <= TOLERANCE * expected.norm())


def _replace_in(
    parent: nn.Module, candidates: Candidates, tried: dict[Hashable, int | None]
) -> None:
    for name, module in list(parent.named_children()):
        found = candidates(module) if is_bfloat16(module) else ()
        kind = _kind(module)
        if found and kind not in tried:
            equal = (i for i, c in enumerate(found) if _equals(c, module))
            tried[kind] = next(equal, None)
        winner = tried.get(kind)
        if winner is not None:
            module = found[winner].eval()
            setattr(parent, name, module)
        _replace_in(module, candidates, tried)


def _kind(module: nn.Module) -> Hashable:
    """Modules of one kind compute the same of weights of the same shape."""
    shapes = tuple((n, _shape(p)) for n, p in module.named_parameters())
    inputs = tuple(getattr(m, "in_features", 0) for m in module.modules())
    return type(module), shapes, inputs, repr(getattr(module, "act_fn", None))


def _shape(parameter: Tensor) -> Sequence[int]:
    """Compressed rows may differ in length; it is the same what they compute."""
    return parameter.shape[: 1 if parameter.dtype == torch.uint8 else None]


def _equals(candidate: nn.Module, module: nn.Module) -> bool:
    """Whether both answer random rows alike."""
    numbers = torch.Generator().manual_seed(0)
    weight = next(module.parameters())
    widths = [getattr(m, "in_features", None) for m in module.modules()]
    width = next(filter(None, widths), weight.shape[-1])
    x = torch.randn((1, sum(_TRIAL_ROWS), width), generator=numbers)
    x = x.to(weight.device, torch.bfloat16)
    with torch.inference_mode(), quick_linear():
        some, expected = (t.split_with_sizes(_TRIAL_ROWS, 1) for t in (x, module(x)))
        return all(map(are_equal, map(candidate, some), expected))
