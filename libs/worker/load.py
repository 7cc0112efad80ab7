"""The loader: a short-lived process that fills the pool's weights and ends.

Its second copy of the weights ends with it. Settings as a worker's; the block size is
the store's to say and comes as the argument.
"""

import sys
from contextlib import closing
from pathlib import Path

from engine.errors import EngineError
from kv.client import StoreClient
from kv.errors import NoRoom, Refused
from kv.operations import BeginLoad
from mesh.errors import ConfigurationError, Unreachable
from mesh.runtime import EXIT_CONFIGURATION, EXIT_UNREACHABLE
from mesh.settings import load as load_settings
from protocol.memory import Device, KVGeometry, LayerGeometry, ModelFacts
from worker.settings import WorkerSettings
from worker.startup import COUNTING

COUNTING_VOCAB_SIZE = 512
COUNTING_MAX_POSITION = 1 << 20


def main(block_size: int) -> None:
    """Exit code 2 and one line when the model cannot be served."""
    try:
        settings = load_settings(WorkerSettings)
        if settings.engine == COUNTING:
            load_nothing(settings, block_size)
        else:
            load_checkpoint(settings, block_size)
    except (ConfigurationError, EngineError, NoRoom, Refused) as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    except Unreachable as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_UNREACHABLE)


def load_checkpoint(settings: WorkerSettings, block_size: int) -> None:
    # torch: seconds that a fake need not wait
    from engine.checkpoint import Checkpoint
    from engine.compiled import are_compiled

    kernels = are_compiled()
    checkpoint = Checkpoint.read(
        Path(settings.model),
        settings.dtype,
        block_size,
        settings.device,
        settings.quantization,
        # Without kernels each step would have to expand them.
        compression=settings.compression and kernels,
        kernels=kernels,
    )
    load = BeginLoad(
        facts=checkpoint.facts,
        geometry=checkpoint.geometry,
        tensors=checkpoint.tensors,
        weights_bytes=checkpoint.weights_bytes,
    )
    with closing(StoreClient(settings.store_socket)) as store:
        with closing(store.begin_load(load)) as weights:
            checkpoint.copy_into(weights.view)
            if settings.device == "cuda":
                checkpoint.prove_in(weights.view)
        store.commit_load(free_bytes_of(settings.device))


def free_bytes_of(device: Device) -> int:
    """What a GPU has left for KV blocks; the host's memory is taken when it is used."""
    if device == "cpu":
        return 0
    import torch

    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return int(free)


def load_nothing(settings: WorkerSettings, block_size: int) -> None:
    """A pool without weights, for the engine that only counts."""
    layer = LayerGeometry(num_kv_heads=1, k_head_dim=1, v_head_dim=1)
    load = BeginLoad(
        facts=ModelFacts(
            model=settings.model,
            fingerprint=COUNTING,
            vocab_size=COUNTING_VOCAB_SIZE,
            max_position=COUNTING_MAX_POSITION,
        ),
        geometry=KVGeometry(layers=(layer,), dtype="float32", block_size=block_size),
        tensors=(),
        weights_bytes=0,
    )
    with closing(StoreClient(settings.store_socket)) as store:
        store.begin_load(load).close()
        store.commit_load()


if __name__ == "__main__":
    main(int(sys.argv[1]))
