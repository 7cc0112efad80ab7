"""What makes two workers agree that they serve the same model. Needs no torch."""

import hashlib
from pathlib import Path

from engine.errors import BrokenCheckpoint
from protocol.memory import DType


def fingerprint(path: Path, dtype: DType) -> str:
    """A digest of the configuration's bytes and the dtype, as 64 hexadecimal digits.

    The weights are left out: hashing gigabytes would cost more than loading them, and
    the workers never read them from disk.

    Raises BrokenCheckpoint when there is no configuration.
    """
    try:
        config = (path / "config.json").read_bytes()
    except OSError as error:
        raise BrokenCheckpoint(f"cannot read {path / 'config.json'}: {error}") from None
    return hashlib.sha256(config + b"\0" + dtype.encode()).hexdigest()
