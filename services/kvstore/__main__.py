"""The KV store: owns weights and KV blocks, computes nothing."""

from kvstore.app import serve
from kvstore.settings import Settings
from mesh.runtime import run

if __name__ == "__main__":
    run("kvstore", serve, Settings)
