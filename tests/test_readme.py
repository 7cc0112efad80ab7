"""The README's promises that a test can keep."""

import re
from pathlib import Path

import pytest

from decode.settings import Settings as DecodeSettings
from gateway.settings import Settings as GatewaySettings
from kvstore.settings import Settings as StoreSettings
from mesh.settings import ServiceSettings
from prefill.settings import Settings as PrefillSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SERVICES = [GatewaySettings, PrefillSettings, DecodeSettings, StoreSettings]


@pytest.mark.parametrize("kind", SERVICES, ids=lambda kind: kind.__module__)
def test_every_setting_is_in_the_table(kind: type[ServiceSettings]) -> None:
    """
    A setting that the table does not name is one that nobody finds.
    """
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}

    assert set(kind.model_fields) <= named


def test_the_files_that_it_names_exist() -> None:
    """
    The life of a request is told with file names, and they are the real ones.
    """
    paths = set(re.findall(r"`((?:libs|services|tests|docs)/[\w/.]+)`", README))

    missing = [path for path in paths if not (ROOT / path).exists()]

    assert paths
    assert not missing


def test_its_links_lead_somewhere() -> None:
    """
    A link to a file of the project is a link to a file that exists.
    """
    links = re.findall(r"\]\(((?!http)[\w/.]+)\)", README)

    assert all((ROOT / link).exists() for link in links)
