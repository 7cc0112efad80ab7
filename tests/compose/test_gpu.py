"""What docker-compose.gpu.yml adds to docker-compose.yml; no engine is needed."""

from typing import Any

import pytest
import yaml
from merging import BASE, ROOT, merged

from decode.settings import Settings as DecodeSettings
from kvstore.settings import Settings as StoreSettings
from mesh.settings import ServiceSettings
from prefill.settings import Settings as PrefillSettings

FILES = (BASE, "docker-compose.gpu.yml")
ON_GPU = ("kvstore", "prefill", "decode", "mps")
CLIENTS = ("prefill", "decode")


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return yaml.safe_load((ROOT / FILES[0]).read_text())["services"]


@pytest.fixture(scope="module")
def added() -> dict[str, Any]:
    return yaml.safe_load((ROOT / FILES[1]).read_text())["services"]


def test_only_the_daemon_is_new(base: dict[str, Any], added: dict[str, Any]) -> None:
    """
    Whatever else the override names is a service of the mesh: a misspelt one would start
    without a GPU beside the real one.
    """
    assert set(added) - set(base) == {"mps"}


@pytest.mark.parametrize("service", ON_GPU)
def test_who_uses_the_gpu_reserves_it(added: dict[str, Any], service: str) -> None:
    """
    One NVIDIA device, with the driver's library and the MPS programs mounted.
    """
    wanted = added[service]["deploy"]["resources"]["reservations"]["devices"]

    assert wanted == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "compute" in added[service]["environment"]["NVIDIA_DRIVER_CAPABILITIES"]


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        ("kvstore", StoreSettings),
        ("prefill", PrefillSettings),
        ("decode", DecodeSettings),
    ],
)
def test_services_are_told_what_they_know(
    added: dict[str, Any], service: str, kind: type[ServiceSettings]
) -> None:
    """
    A service ends at a setting that it does not know: none is given to a wrong one.
    """
    given = [name for name in added[service]["environment"] if "TANDEM_" in name]

    assert "TANDEM_DEVICE" in given
    assert {name.removeprefix("TANDEM_").lower() for name in given} <= set(
        kind.model_fields
    )


@pytest.mark.parametrize("service", ["kvstore", *CLIENTS])
def test_images_for_the_gpu_have_their_own_names(
    base: dict[str, Any], added: dict[str, Any], service: str
) -> None:
    """
    An image with the bindings never passes for the one without, nor the other way round.
    """
    assert added[service]["build"]["args"] == {"CUDA": "cuda"}
    assert added[service]["image"] == f"{base[service]['image']}-cuda"


@pytest.mark.parametrize("service", CLIENTS)
def test_workers_reach_the_daemon(added: dict[str, Any], service: str) -> None:
    """
    Daemon and clients have the pipe directory, its volume and the IPC namespace in common.
    """
    worker, daemon = added[service], added["mps"]

    directory = daemon["environment"]["CUDA_MPS_PIPE_DIRECTORY"]
    assert worker["environment"]["CUDA_MPS_PIPE_DIRECTORY"] == directory
    assert worker["volumes"] == daemon["volumes"] == [f"mps:{directory}"]
    assert (daemon["ipc"], worker["ipc"]) == ("shareable", "service:mps")


def test_the_daemon_has_the_user_of_its_clients(added: dict[str, Any]) -> None:
    """
    MPS serves clients of one uid: the one that the images run as.
    """
    uid, _, _ = added["mps"]["user"].partition(":")

    assert f"--uid {uid} " in (ROOT / "Dockerfile").read_text()


def test_the_merged_services_stay_hardened() -> None:
    """
    Compose accepts both files together, and no container has more rights than on a CPU.
    """
    services = merged(FILES[1])["services"]

    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "pid"} & set(service), name
