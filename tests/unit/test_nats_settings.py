"""How flags, environment and contexts of the nats command combine."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.connection import DEFAULT_SERVER, ConnectionSettings, resolve
from shared.errors import BadInput

CREDS = "-----BEGIN NATS USER JWT-----\nx\n-----BEGIN USER NKEY SEED-----\ny\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config/nats/context").mkdir(parents=True)
    (tmp_path / "user.creds").write_text(CREDS)
    (tmp_path / "user.nk").write_text("SU" + "A" * 56 + "\n")
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (tmp_path / name).write_text("x")
    return tmp_path


def settings(home: Path, flags: dict[str, str] | None = None, **variables: str) -> ConnectionSettings:
    chosen: dict[str, Any] = flags or {}
    return resolve(**chosen, environment={"HOME": str(home), **variables})


def context(home: Path, name: str, *, select: bool = False, **fields: Any) -> None:
    (home / ".config/nats/context" / f"{name}.json").write_text(json.dumps(fields))
    if select:
        (home / ".config/nats/context.txt").write_text(f"{name}\n")


def test_without_anything_the_local_server_is_meant(home: Path) -> None:
    assert settings(home) == ConnectionSettings(servers=(DEFAULT_SERVER,))


def test_a_flag_beats_the_environment_and_that_beats_the_context(home: Path) -> None:
    context(home, "prod", select=True, url="nats://context:1")
    assert settings(home).servers == ("nats://context:1",)
    assert settings(home, NATS_URL="nats://variable:2").servers == ("nats://variable:2",)
    assert settings(home, {"server": "nats://flag:3"}, NATS_URL="nats://variable:2").servers == ("nats://flag:3",)


def test_an_identity_is_taken_whole_from_one_source(home: Path) -> None:
    context(home, "prod", select=True, url="nats://c:1", user="context", password="secret")
    found = settings(home, {"creds": str(home / "user.creds")}, NATS_USER="variable", NATS_PASSWORD="other")
    assert (found.creds, found.user, found.password) == (str(home / "user.creds"), "", "")
    found = settings(home, NATS_USER="variable", NATS_PASSWORD="other")
    assert (found.user, found.password) == ("variable", "other")
    assert (settings(home).user, settings(home).name) == ("context", "prod")


def test_the_chosen_context_beats_the_selected_one(home: Path) -> None:
    context(home, "a", select=True, url="nats://a:1")
    context(home, "b", url="nats://b:1")
    context(home, "c", url="nats://c:1", tls_first=True, inbox_prefix="_MINE")
    assert settings(home, NATS_CONTEXT="b").servers == ("nats://b:1",)
    found = settings(home, {"context": "c"}, NATS_CONTEXT="b")
    assert (found.servers, found.tls_first, found.inbox_prefix) == (("nats://c:1",), True, "_MINE")


def test_contexts_live_below_xdg_config_home_if_that_is_set(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "xdg"
    (other / "nats/context").mkdir(parents=True)
    (other / "nats/context/x.json").write_text('{"url": "nats://xdg:1"}')
    assert settings(home, {"context": "x"}, XDG_CONFIG_HOME=str(other)).servers == ("nats://xdg:1",)


def test_a_home_directory_in_a_path_is_expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    context(home, "a", select=True, url="nats://a", creds="~/user.creds", ca="$HOME/ca.pem")
    found = settings(home)
    assert (found.creds, found.tlsca) == (str(home / "user.creds"), str(home / "ca.pem"))


@pytest.mark.parametrize(
    ("given", "servers"),
    [
        ("localhost", ("nats://localhost:4222",)),
        ("localhost:1", ("nats://localhost:1",)),
        ("tls://a:1, nats://b", ("tls://a:1", "nats://b:4222")),
        ("nats://a:1,nats://a:1", ("nats://a:1",)),
        ("nats://[::1]:5", ("nats://[::1]:5",)),
    ],
)
def test_servers_are_written_in_one_form(home: Path, given: str, servers: tuple[str, ...]) -> None:
    assert settings(home, {"server": given}).servers == servers


def test_a_user_in_the_address_is_an_identity_of_last_resort(home: Path) -> None:
    found = settings(home, {"server": "nats://me:p%40ss@a:1,nats://me:p%40ss@b:1"})
    assert (found.servers, found.user, found.password) == (("nats://a:1", "nats://b:1"), "me", "p@ss")
    assert settings(home, {"server": "nats://token@a:1"}).token == "token"
    found = settings(home, {"server": "nats://me:x@a:1", "user": "other", "password": "y"})
    assert (found.user, found.password) == ("other", "y")


def test_secrets_are_not_shown(home: Path) -> None:
    assert "p4ss" not in repr(settings(home, NATS_USER="me", NATS_PASSWORD="p4ss"))


@pytest.mark.parametrize(
    ("flags", "variables", "words"),
    [
        ({"server": "http://a:1"}, {}, "--server is 'http://a:1'"),
        ({"server": "nats://a:port"}, {}, "--server"),
        ({"server": " , "}, {}, "--server"),
        ({"creds": "/nowhere"}, {}, "--creds is '/nowhere'.*file that exists"),
        ({"password": "x"}, {}, "--password.*give --user too"),
        ({"user": "a", "creds": "{home}/user.creds"}, {}, "--creds and --user.*one way"),
        ({"creds": "{home}/ca.pem"}, {}, "--creds.*credentials file"),
        ({"nkey": "{home}/ca.pem"}, {}, "--nkey.*seed"),
        ({"tlscert": "{home}/cert.pem"}, {}, "--tlscert.*give --tlskey too"),
        ({}, {"NATS_KEY": "{home}/key.pem"}, "NATS_KEY.*give NATS_CERT too"),
        ({}, {"NATS_CREDS": "/nowhere"}, "NATS_CREDS is '/nowhere'"),
        ({"context": "unknown"}, {}, "--context.*readable file"),
        ({"context": "../x"}, {}, "--context is '../x'"),
        ({}, {"NATS_CONTEXT": "broken"}, "NATS_CONTEXT is 'broken'.*not JSON"),
        ({"context": "scoped"}, {}, "context scoped: jetstream_domain.*not supported"),
        ({"context": "lost"}, {}, "context lost: creds is '/nowhere'"),
    ],
)
def test_what_is_wrong_is_named_with_where_it_stands(
    home: Path, flags: dict[str, str], variables: dict[str, str], words: str
) -> None:
    context(home, "scoped", url="nats://a:1", jetstream_domain="hub")
    context(home, "lost", url="nats://a:1", creds="/nowhere")
    (home / ".config/nats/context/broken.json").write_text("{")
    with pytest.raises(BadInput, match=words):
        settings(
            home,
            {key: value.format(home=home) for key, value in flags.items()},
            **{key: value.format(home=home) for key, value in variables.items()},
        )


def test_a_seed_file_and_certificates_are_accepted(home: Path) -> None:
    found = settings(home, {"nkey": str(home / "user.nk")}, NATS_CERT=f"{home}/cert.pem", NATS_KEY=f"{home}/key.pem")
    assert (found.nkey, found.tlscert, found.tlskey) == (f"{home}/user.nk", f"{home}/cert.pem", f"{home}/key.pem")
