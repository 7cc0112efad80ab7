"""Settings: typed, read once, and never wrong in silence."""

import pytest

from mesh.errors import ConfigurationError
from mesh.settings import ServiceSettings, load


class Settings(ServiceSettings):
    """A service with one setting of its own."""

    num_things: int = 3


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("TANDEM_")]:
        monkeypatch.delenv(name)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A setting is its upper-case name after the prefix.
    """
    monkeypatch.setenv("TANDEM_NUM_THINGS", "7")
    monkeypatch.setenv("TANDEM_POOL", "blue")

    settings = load(Settings)

    assert (settings.num_things, settings.pool) == (7, "blue")


def test_a_misspelt_setting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A variable that no setting has stops the process and is named.
    """
    monkeypatch.setenv("TANDEM_NUM_THINGZ", "7")

    with pytest.raises(ConfigurationError, match="TANDEM_NUM_THINGZ"):
        load(Settings)


def test_a_malformed_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A value of the wrong type stops the process, with the variable and the reason.
    """
    monkeypatch.setenv("TANDEM_NUM_THINGS", "many")

    with pytest.raises(ConfigurationError, match=r"TANDEM_NUM_THINGS: .*integer"):
        load(Settings)


def test_the_value_of_a_wrong_setting_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    An error never shows the value: it may be a password in a URL.
    """
    monkeypatch.setenv("TANDEM_NUM_THINGS", "s3cret")

    with pytest.raises(ConfigurationError) as caught:
        load(Settings)

    assert "s3cret" not in str(caught.value)


def test_settings_do_not_change() -> None:
    """
    What a service was told at its start holds until its end.
    """
    settings = load(Settings)

    with pytest.raises(ValueError, match="frozen"):
        settings.num_things = 4
