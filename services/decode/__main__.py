"""The decode service: adopts sequences and generates until they end."""

from decode.app import serve
from decode.settings import Settings
from mesh.runtime import run

if __name__ == "__main__":
    run("decode", serve, Settings)
