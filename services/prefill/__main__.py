"""The prefill service: prompt in, KV blocks and first token out."""

from mesh.runtime import run
from prefill.app import serve
from prefill.settings import Settings

if __name__ == "__main__":
    run("prefill", serve, Settings)
