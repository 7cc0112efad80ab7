"""What stand-ins on the CPU have in common: each token is computed by itself."""

from torch import Tensor, nn

from engine.recorder import Recorder


class TokenWise(nn.Module):
    """A module that maps [..., dim] to [..., another dim], row by row.

    Rows of a pass that are no longer wanted are left out, and zeros in the answer.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., another dim]."""
        rows = self._recorder.wanted(x)
        if rows is None:
            return self.compute(x)
        some = self.compute(x[:, rows])
        whole = some.new_zeros((1, x.shape[1], some.shape[-1]))
        whole[:, rows] = some
        return whole

    def compute(self, x: Tensor) -> Tensor:
        """The same, of all rows."""
        raise NotImplementedError
