"""Where Triton's kernels run in tests: on a GPU, or here under its interpreter.

Imported before any kernel: the interpreter must be chosen before Triton sees one.
"""

import os
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _interpret() -> None:
    """Choose the interpreter for all kernels from now on."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    # Of a Triton that transformers has imported by now, `tl.max` and others would be
    # compiled.
    standard = vars(language.standard)
    interpreted = {
        function: InterpretedFunction(function.fn)
        for function in standard.values()
        if isinstance(function, JITFunction)
    }
    for names in (standard, vars(language)):
        for name, member in list(names.items()):
            if isinstance(member, JITFunction):
                names[name] = interpreted.get(member, member)
    _read_bounds()


def _read_bounds() -> None:
    """Let the interpreter read loop bounds with numpy 2.4.

    Triton 3.6 keeps a scalar as an array of one element and calls int() of it.
    """
    from triton.runtime import interpreter

    theirs = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        theirs(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch


if DEVICE == "cpu":
    _interpret()
