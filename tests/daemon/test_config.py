"""The configuration: what is refused, and how the error reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from dfud.api import BugError, ConfigError, Secret, Section
from dfud.daemon.config import CORE_SECTIONS, DaemonConfig, build, enabled_plugins, read_file, sample


class Some(msgspec.Struct, frozen=True):
    port: Annotated[int, msgspec.Meta(description="port", ge=1, le=65535)] = 80
    on: bool = False
    wait_s: Annotated[float, msgspec.Meta(description="wait", ge=0, extra={"unit": "s"})] = 1.0
    names: list[str] = msgspec.field(default_factory=list)
    token: Secret = Secret("")


class Needy(msgspec.Struct, frozen=True):
    key: str


SECTIONS = (*CORE_SECTIONS, Section("transport.coap", Some), Section("transport.http", Some))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"transport": {"coap": {"port": 70000}}}, "dfud.toml: [transport.coap] port 70000, expected 1 to 65535"),
        ({"transport": {"coap": {"port": "x"}}}, "dfud.toml: [transport.coap] port 'x', expected 1 to 65535"),
        ({"transport": {"coap": {"prot": 1}}}, "dfud.toml: [transport.coap] prot is unknown, did you mean port?"),
        ({"transport": {"coop": {}}}, "dfud.toml: table [transport.coop] is unknown, did you mean transport.coap?"),
        ({"deamon": {}}, "dfud.toml: table [deamon] is unknown, did you mean daemon?"),
        ({"stray": 1}, "dfud.toml: stray stands outside of any section, expected it in a table"),
        ({"transport": {"x": 1}}, "dfud.toml: [transport] x stands outside of any section, expected it in a table"),
        ({"transport": {"coap": {"on": 1}}}, "dfud.toml: [transport.coap] on 1, expected true or false"),
        ({"transport": {"coap": {"names": "a"}}}, "dfud.toml: [transport.coap] names 'a', expected a list of text"),
        (
            {"daemon": {"log_level": "loud"}},
            "dfud.toml: [daemon] log_level 'loud', expected debug, info, warning, error",
        ),
        ({"daemon": {"drain_s": -1}}, "dfud.toml: [daemon] drain_s -1, expected 0 to 600"),
        ({"daemon": []}, "dfud.toml: daemon stands outside of any section, expected it in a table"),
        ({"transport": {"coap": {"token": 5}}}, "dfud.toml: [transport.coap] token the value given, expected text"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(document: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(document, SECTIONS, "dfud.toml")
    assert str(caught.value) == message


def test_a_value_that_must_be_given_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"\[needy\] key is missing, expected text"):
        build({}, [Section("needy", Needy)], "dfud.toml")


def test_one_section_has_one_owner() -> None:
    with pytest.raises(ConfigError, match="declared twice"):
        build({}, [*SECTIONS, Section("daemon", Some)], "dfud.toml")


def test_values_and_defaults_are_read() -> None:
    config = build({"transport": {"coap": {"port": 5683, "token": "s3cret"}}}, SECTIONS, "dfud.toml")
    assert config.section("transport.coap", Some).port == 5683
    assert config.section("transport.http", Some).port == 80
    assert config.section("daemon", DaemonConfig).store == "local"
    assert config.section("transport.coap", Some).token.reveal() == "s3cret"
    assert "s3cret" not in repr(config)
    with pytest.raises(BugError):
        config.section("other", Some)


def test_the_sample_reads_back_as_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "full.toml").write_text(sample(SECTIONS))
    assert build(read_file(tmp_path / "full.toml"), SECTIONS, "") == build({}, SECTIONS, "")
    assert "# wait; a number from 0 up, in s\nwait_s = 1.0\n" in sample(SECTIONS)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: there is no such file, .* --full > .*nothing.toml` writes one"):
        read_file(tmp_path / "nothing.toml")
    (tmp_path / "bad.toml").write_bytes(b"[a\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: not TOML: .*line 1"):
        read_file(tmp_path / "bad.toml")
    for odd in (b"\xff", b"a = " + b"9" * 5000, b"a = " + b"[" * 5000):
        (tmp_path / "bad.toml").write_bytes(odd)
        with pytest.raises(ConfigError, match="not TOML"):
            read_file(tmp_path / "bad.toml")


def test_plugins_are_read_first() -> None:
    assert enabled_plugins({}, "x") == ["local", "http"]
    assert enabled_plugins({"plugins": {"enabled": ["a"]}}, "x") == ["a"]
    with pytest.raises(ConfigError, match="a list of text"):
        enabled_plugins({"plugins": {"enabled": "a"}}, "x")
