"""What can go wrong at the store's connection.

* StoreError
  + StoreLost       the connection is gone: a worker has to attach anew
  + LeaseLost       the store took everything back: this process must end
  + Refused         the store will not do this for this peer; the text says why
  + TransferLost    the other store is gone or silent in the middle of a transfer
  + NoRoom          a segment cannot be made or mapped; the text says why
"""

from mesh.errors import Unreachable


class StoreError(Exception):
    """Root of this library's errors."""


class StoreLost(StoreError, Unreachable):
    """The connection to the store ended or did not answer in time."""


class LeaseLost(StoreError, Unreachable):
    """Nothing was heard of this peer for too long."""


class Refused(StoreError):
    """The store will not serve this peer."""


class TransferLost(StoreError):
    """The other end of a transfer is gone or silent."""


class NoRoom(StoreError):
    """This memory cannot be had."""
