"""What docker-compose.disaggregated.yml adds to docker-compose.yml; no engine is needed."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from merging import ROOT, merged

from decode.settings import Settings as DecodeSettings
from kvstore.settings import Settings as StoreSettings
from mesh.settings import ServiceSettings

FILE = "docker-compose.disaggregated.yml"


@pytest.fixture(scope="module")
def added() -> dict[str, Any]:
    return yaml.safe_load(Path(ROOT, FILE).read_text())["services"]


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        ("kvstore", StoreSettings),
        ("kvstore-decode", StoreSettings),
        ("decode", DecodeSettings),
    ],
)
def test_services_are_told_what_they_know(
    added: dict[str, Any], service: str, kind: type[ServiceSettings]
) -> None:
    """
    A service ends at a setting that it does not know: none is given to a wrong one.
    """
    given = {name.removeprefix("TANDEM_") for name in added[service]["environment"]}

    assert {name.lower() for name in given} <= set(kind.model_fields)


def test_decode_workers_are_where_prompts_are_handed_to(added: dict[str, Any]) -> None:
    """
    Store and workers of the second pool share its name and its socket's volume.
    """
    store, worker = added["kvstore-decode"], added["decode"]

    pool = added["kvstore"]["environment"]["TANDEM_HANDOFF_POOL"]
    assert store["environment"]["TANDEM_POOL"] == pool
    assert worker["environment"]["TANDEM_POOL"] == pool
    assert worker["volumes"] == [f"{volume}:ro" for volume in store["volumes"]]


def test_the_first_store_is_found_by_its_name(added: dict[str, Any]) -> None:
    """
    It listens at the address that it tells: its own, as the other containers know it.
    """
    assert added["kvstore"]["environment"]["TANDEM_TRANSFER_HOST"] == "kvstore"


def test_the_merged_services_are_separate() -> None:
    """
    Compose accepts both files together: each pool has its volume, all stay hardened.
    """
    services = merged(FILE)["services"]

    volumes = {
        name: [volume["source"] for volume in services[name]["volumes"]]
        for name in ("kvstore", "kvstore-decode", "prefill", "decode")
    }
    assert volumes["kvstore"] == ["store"]
    assert volumes["kvstore-decode"] == ["decode"]
    assert "store" in volumes["prefill"]
    assert "decode" in volumes["decode"]
    assert services["kvstore-decode"]["read_only"]
    assert services["kvstore-decode"]["cap_drop"] == ["ALL"]
