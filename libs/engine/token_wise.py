"""What stand-ins on the CPU have in common: each token is computed by itself."""

from torch import Tensor, nn

from engine.operations import Index, Kind
from engine.recorder import Recorder


class TokenWise(nn.Module):
    """A module that maps [..., dim] to [..., another dim], row by row.

    Rows of a pass that are no longer wanted are left out: in the answer they are zeros or,
    in a recorded step, whatever lay there.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., another dim]."""
        rows = self._recorder.wanted(x)
        if rows is None:
            return self.compute(x)
        x, count = x.contiguous(), len(rows)
        some = x.new_empty((1, count, x.shape[-1]))
        sizes = x.shape[-1], Index.SAMPLED
        self._recorder.do(Kind.PICK, count, (x, some), sizes)
        some = self.compute(some)
        whole = self._recorder.unwanted(some, x.shape[1])
        self._recorder.do(Kind.PUT, count, (some, whole), (some.shape[-1],))
        return whole

    def compute(self, x: Tensor) -> Tensor:
        """The same, of all rows."""
        raise NotImplementedError
