"""Whether a store hands over to another pool, and how, as its settings say."""

import socket
from contextlib import ExitStack

from kvstore.sender import transfer_listener
from kvstore.settings import Settings
from kvstore.transport import KVTransport, LocalTransport, TcpTransport
from mesh.errors import ConfigurationError


def check_handoff(settings: Settings) -> None:
    """ConfigurationError for one that is not possible."""
    if not settings.handoff_pool:
        return
    if settings.device == "cuda":
        raise ConfigurationError(
            "TANDEM_HANDOFF_POOL needs TANDEM_DEVICE=cpu: K/V is moved between pools in "
            "the host's memory only"
        )
    if settings.handoff_pool == settings.pool:
        raise ConfigurationError("TANDEM_HANDOFF_POOL is this pool itself")


def transport_of(
    settings: Settings, worker_id: str, stack: ExitStack
) -> tuple[KVTransport, socket.socket | None]:
    """How finished prompts come to decode; and where their K/V is asked for, if it is."""
    local = LocalTransport(settings.pool)
    if not settings.handoff_pool:
        return local, None
    host = settings.transfer_host
    listener = stack.enter_context(transfer_listener(host, settings.transfer_port))
    address = f"{host}:{listener.getsockname()[1]}"
    return TcpTransport(local, settings.handoff_pool, address, worker_id), listener
