"""`weft login`, `token`, `quota` and `audit`: against the embedded registry, and one that asks for tokens."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from tests.registry.access.lab import Asking, asking
from weft_client.cli.app import app
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import PreconditionError
from weft_registry.home import Home
from weft_registry.principal import Scope
from weft_registry.wire.login import LoginFile

Weft = Callable[..., Result]


@pytest.fixture
def weft(home: Home) -> Weft:
    """Runs one command in this process."""

    def run(*arguments: str, status: int = 0, env: dict[str, str] | None = None, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, arguments, input=stdin, env=env)
        assert result.exit_code == status, (result.exit_code, result.output, result.exception)
        return result

    return run


@pytest.fixture
def server(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    """The registry of this home, for others: they need a token."""
    monkeypatch.delenv("WEFT_TOKEN", raising=False)
    registry = EmbeddedRegistry(home)
    with asking(registry) as server:
        yield server
    registry.close()


def made(weft: Weft, *arguments: str) -> str:
    secret: str = json.loads(weft("token", "create", *arguments, "--json").stdout)["secret"]
    return secret


def test_the_first_token_is_made_on_the_registrys_own_machine(weft: Weft, server: Asking) -> None:
    answer = weft("token", "create", "--scope", "admin", "operator")
    secret = answer.stdout.strip()
    assert "not shown again" in answer.stderr
    assert secret not in answer.stderr
    identity = server.client(secret).who_am_i()
    assert (identity.name, identity.scopes, identity.namespaces) == (
        "operator",
        frozenset({"admin"}),
        frozenset({"*"}),
    )


def test_a_token_is_made_with_what_is_said_of_it(weft: Weft, server: Asking) -> None:
    secret = made(
        weft,
        "ci",
        "--scope",
        "publish",
        "--scope",
        "alias",
        "--namespace",
        "acme",
        "--namespace",
        "team",
        "--expires",
        "2w",
    )
    identity = server.client(secret).who_am_i()
    assert (identity.scopes, identity.namespaces) == (
        frozenset({"publish", "alias"}),
        frozenset({"acme", "team"}),
    )
    assert identity.expires_at is not None
    assert server.client(made(weft, "reader")).who_am_i().scopes == {Scope.READ.value}
    assert weft("token", "create", "x", "--expires", "soon", status=2).exit_code == 2


def test_tokens_are_listed_and_ended(weft: Weft, server: Asking) -> None:
    secret = made(weft, "ci")
    listed = json.loads(weft("token", "list", "--json").stdout)
    assert [(each["name"], each["scopes"], each["created_by"]) for each in listed] == [("ci", ["read"], "local")]
    assert secret not in weft("token", "list").stdout
    assert "revoked" in weft("token", "revoke", "ci").stdout
    assert json.loads(weft("token", "list", "--json").stdout) == []
    assert "revoked" in weft("token", "list", "--ended").stdout
    assert "was revoked" in weft("list", "--registry", server.target, env={"WEFT_TOKEN": secret}, status=1).stderr


def test_login_is_remembered_for_its_registry_and_nobody_else_reads_it(weft: Weft, server: Asking, home: Home) -> None:
    secret = made(weft, "me", "--scope", "read", "--namespace", "acme")
    assert "asks who you are" in weft("list", "--registry", server.target, status=1).stderr
    answer = weft("login", "--registry", server.target, "--token-stdin", stdin=secret + "\n")
    assert f"{server.target}: you are me: read in acme" in answer.stdout
    assert secret not in answer.output
    path = home.root / "credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    weft("list", "--registry", server.target)
    assert json.loads(weft("whoami", "--registry", server.target, "--json").stdout)["name"] == "me"
    # WEFT_TOKEN goes before it.
    other = made(weft, "other")
    said = weft("whoami", "--registry", server.target, "--json", env={"WEFT_TOKEN": other})
    assert json.loads(said.stdout)["name"] == "other"
    weft("logout", "--registry", server.target)
    assert "asks who you are" in weft("list", "--registry", server.target, status=1).stderr
    assert "was stored" in weft("logout", "--registry", server.target, status=1).stderr


def test_a_token_that_the_registry_does_not_know_is_not_remembered(weft: Weft, server: Asking, home: Home) -> None:
    wrong = "weft_" + "0" * 16 + "_" + "0" * 64
    assert (
        "not one of this registry"
        in weft("login", "--registry", server.target, "--token-stdin", stdin=wrong, status=1).stderr
    )
    assert "no token" in weft("login", "--registry", server.target, "--token-stdin", stdin="\n", status=1).stderr
    assert not (home.root / "credentials.json").exists()


def test_credentials_that_others_can_read_are_not_used(home: Home) -> None:
    logins = LoginFile(home)
    logins.store("127.0.0.1:1", "weft_x")
    logins.store("127.0.0.1:2", "weft_y")
    assert (logins.token("127.0.0.1:1"), logins.token("127.0.0.1:3")) == ("weft_x", None)
    logins.path.chmod(0o640)
    with pytest.raises(PreconditionError, match="chmod 600"):
        logins.token("127.0.0.1:1")
    logins.path.chmod(0o600)
    logins.path.write_text("[]")
    with pytest.raises(PreconditionError, match="log in again"):
        logins.token("127.0.0.1:1")


def test_quotas_are_set_and_shown_from_near_and_far(weft: Weft, server: Asking) -> None:
    secret = made(weft, "--scope", "admin", "operator")
    far = ("--registry", server.target)
    weft("quota", "set", "acme", "--bytes", "1GiB", "--versions", "5", *far, env={"WEFT_TOKEN": secret})
    weft("quota", "set", "acme", "--versions", "none", "--uploads", "3")
    shown = json.loads(weft("quota", "show", "acme", "--json", *far, env={"WEFT_TOKEN": secret}).stdout)
    assert shown["quota"] == {
        "namespace": "acme",
        "max_bytes": 1 << 30,
        "max_versions": None,
        "max_open_uploads": 3,
    }
    assert "0 B of 1.0 GiB" in weft("quota", "show", "acme").stdout
    assert weft("quota", "set", "acme", status=2).exit_code == 2
    assert weft("quota", "set", "acme", "--versions", "-1", status=2).exit_code == 2


def test_the_audit_log_is_shown_from_near_and_far(weft: Weft, server: Asking) -> None:
    secret = made(weft, "--scope", "admin", "operator")
    weft("token", "create", "second", "--registry", server.target, env={"WEFT_TOKEN": secret})
    weft("list", "--registry", server.target, status=1)
    entries = json.loads(
        weft("audit", "--json", "--since", "1h", "--registry", server.target, env={"WEFT_TOKEN": secret}).stdout
    )
    assert [(each["actor"], each["action"], each["subject"]) for each in entries[1:]] == [
        ("operator", "token.create", "second"),
        ("local", "token.create", "operator"),
    ]
    assert (entries[0]["action"], entries[0]["actor"]) == ("denied", "anonymous")
    shown = weft("audit", "--actor", "operator").stdout
    assert "second" in shown
    assert "local" not in shown
    assert "nothing in the audit log" in weft("audit", "--action", "restore").stderr


def test_what_contradicts_itself_is_refused_before_anything_is_served(weft: Weft) -> None:
    assert "add --auth" in weft("registry", "serve", "--anonymous-read", status=1).stderr
    assert "needs both" in weft("registry", "serve", "--tls-cert", "x", status=1).stderr
    assert "cannot be read" in weft("registry", "serve", "--tls-cert", "x", "--tls-key", "y", status=1).stderr


def test_the_new_commands_have_examples() -> None:
    for command in ("login", "logout", "whoami", "token create", "token list", "token revoke", "quota set", "audit"):
        help_text = CliRunner().invoke(app, [*command.split(), "--help"]).output
        assert "Example:" in help_text, command
