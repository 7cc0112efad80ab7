"""`python -m gateway`: starts the service; knows nothing of what it does."""

import sys

from gateway.app import serve
from gateway.settings import Settings
from mesh.runtime import run

if __name__ == "__main__":
    # Where torch is installed transformers' tokenizers would import it: two seconds and
    # 300 MB for nothing.
    sys.modules["torch"] = None  # type: ignore[assignment]
    run("gateway", serve, Settings)
