"""From what a person calls a model to a directory: a path, or a hub id.

Knows no architecture: whether the model can be served is for the workers to say.
"""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from typing import TypeVar

from mesh.errors import ConfigurationError

HUB_SECONDS = 2.0  # the hub must answer within; the files may take longer
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]

T = TypeVar("T")


def find(model: str) -> Path:
    """The model's directory, downloaded if need be; ConfigurationError says why not."""
    path = Path(model).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return path.resolve()
        raise ConfigurationError(f"model directory {model} has no config.json")
    if path.exists() or not HUB_ID.fullmatch(model):
        raise ConfigurationError(f"no model directory at {model}")
    return _cached(model) or _downloaded(model)


def name_of(model: str) -> str:
    """What a model is called when nobody named it: a hub id, or its directory's name."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _cached(model: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(model, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return path if _is_complete(path) else None


def _is_complete(path: Path) -> bool:
    """False for a download that was broken off."""
    if not (path / "config.json").is_file():
        return False
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return any(path.glob("*.safetensors"))
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return all((path / shard).is_file() for shard in shards)


def _downloaded(model: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    missing = f"{model} is neither a directory nor in the hub's local cache"
    try:
        _within(HUB_SECONDS, lambda: api.model_info(model, timeout=HUB_SECONDS))
        return Path(snapshot_download(model, allow_patterns=WANTED_FILES))
    except RepositoryNotFoundError:
        raise ConfigurationError(f"{missing}, and the hub does not know it") from None
    except Exception as error:  # the hub's client lets several libraries' errors out
        reason = type(error).__name__
        raise ConfigurationError(f"{missing}, and the hub failed: {reason}") from error


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The call's result, or TimeoutError; bounds what has no timeout, like name look-up."""
    outcome: Queue[T | Exception] = Queue()

    def run() -> None:
        try:
            outcome.put(call())
        except Exception as error:  # raised again by the caller's thread
            outcome.put(error)

    threading.Thread(target=run, name="hub", daemon=True).start()
    try:
        result = outcome.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None
    if isinstance(result, Exception):
        raise result
    return result
