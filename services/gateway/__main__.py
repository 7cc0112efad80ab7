"""`python -m gateway`: starts the service; knows nothing of what it does."""

from gateway.app import serve
from gateway.settings import Settings
from mesh.runtime import run

if __name__ == "__main__":
    run("gateway", serve, Settings)
