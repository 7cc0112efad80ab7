"""What makes two workers agree that they serve the same model. Needs no torch."""

import hashlib
from pathlib import Path

from engine.errors import BrokenCheckpoint
from protocol.memory import LAYOUT, Device, DType, Quantization


def fingerprint(
    path: Path,
    dtype: DType,
    device: Device = "cpu",
    quantization: Quantization = "none",
) -> str:
    """A digest of configuration, dtypes, device and layout of the blocks, 64 hex digits.

    Two versions of this program that lay blocks out differently must not share them.

    The weights are left out: hashing gigabytes would cost more than loading them, and
    the workers never read them from disk.

    Raises BrokenCheckpoint when there is no configuration.
    """
    try:
        config = (path / "config.json").read_bytes()
    except OSError as error:
        raise BrokenCheckpoint(f"cannot read {path / 'config.json'}: {error}") from None
    rest = f"\0{dtype}\0{device}\0{quantization}\0{LAYOUT}"
    return hashlib.sha256(config + rest.encode()).hexdigest()
