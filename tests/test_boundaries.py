"""Who may import whom. A convention that a test keeps."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICES = {"gateway", "prefill", "decode", "kvstore"}
ALLOWED = {
    "mesh": set(),
    "protocol": set(),
    "device": set(),
    "kv": {"mesh", "protocol", "device"},
    "engine": {"protocol", "device"},
    "worker": {"mesh", "protocol", "device", "kv", "engine"},
    "bench": {"mesh"},
    "tandem": {"mesh", "protocol", "device", "bench"},
    "gateway": {"mesh", "protocol"},
    "kvstore": {"mesh", "protocol", "kv"},
    "prefill": {"mesh", "worker"},
    "decode": {"mesh", "worker"},
}
FORBIDDEN_IN_ENGINE = {"asyncio", "socket", "redis", "aiohttp"}
UNSAFE = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}


def sources(package: str) -> list[Path]:
    root = "services" if package in SERVICES else "libs"
    files = sorted((ROOT / root / package).rglob("*.py"))
    assert files, f"no source in {package}"
    return files


def imports(path: Path) -> Iterator[str]:
    """The top-level names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_look_downward(package: str) -> None:
    """
    Libraries look only at those below them, and a service never imports a service.
    """
    ours = {name for path in sources(package) for name in imports(path)} & set(ALLOWED)

    assert ours - {package} <= ALLOWED[package]


def test_the_engine_knows_no_network() -> None:
    """
    The engine is synchronous and speaks to nobody.
    """
    imported = {name for path in sources("engine") for name in imports(path)}

    assert not imported & FORBIDDEN_IN_ENGINE


@pytest.mark.parametrize("package", ALLOWED)
def test_nothing_is_unpickled(package: str) -> None:
    """
    No part of the mesh can be made to run code by the bytes it reads.
    """
    for path in sources(package):
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        }
        assert not set(imports(path)) & UNSAFE, path
        assert not calls & {"torch.load", "eval", "exec", "yaml.load"}, path


def test_redis_is_called_in_one_library() -> None:
    """
    Commands to Redis are in mesh: the others pass its client on.
    """
    for package in set(ALLOWED) - {"mesh", "tandem"}:
        for path in sources(package):
            text = path.read_text()
            commands = (
                "xadd",
                "xread",
                "xack",
                "xclaim",
                "pipeline",
                ".hset",
                ".get(b",
            )
            assert not any(f"redis.{name}" in text for name in commands), path


@pytest.mark.parametrize("service", ["gateway", "kvstore"])
def test_slim_services_need_no_torch(service: str) -> None:
    """
    Gateway and store run in an image without torch.
    """
    check = (
        "import sys; sys.modules['torch'] = None; "
        f"import {service}.app; print('imported')"
    )

    output = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )

    assert output.stdout.strip() == "imported", output.stderr[-500:]
