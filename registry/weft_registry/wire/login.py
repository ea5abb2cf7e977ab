"""The tokens of this machine's user, by the registry that each is for: WEFT_TOKEN, or what `weft login` wrote down."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any

from weft_registry.errors import PreconditionError
from weft_registry.home import Home
from weft_registry.wire.endpoint import Endpoint

CLEAR_TEXT = "WEFT_PLAINTEXT_TOKEN"


class LoginFile:
    """Owns WEFT_HOME/credentials.json, which only its user can read."""

    def __init__(self, home: Home) -> None:
        self.path: Path = home.root / "credentials.json"

    def token(self, address: str) -> str | None:
        """The token for the registry at `address`. Raises `PreconditionError` for a file that others can read."""
        token = self._read().get(address)
        return str(token) if token else None

    def store(self, address: str, token: str) -> None:
        """Remembers a token for `address`, in place of another."""
        self._write({**self._read(), address: token})

    def remove(self, address: str) -> bool:
        """Forgets the token for `address`; whether there was one."""
        known = self._read()
        there = known.pop(address, None) is not None
        if there:
            self._write(known)
        return there

    def _read(self) -> dict[str, Any]:
        try:
            mode = self.path.stat().st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise PreconditionError(
                    f"{self.path} holds tokens, and others than its user may read or change it: chmod 600 {self.path}",
                    reason="CREDENTIALS_READABLE",
                )
            known = json.loads(self.path.read_text())["tokens"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken() from error
        if not isinstance(known, dict):
            raise self._broken()
        return known

    def _broken(self) -> PreconditionError:
        return PreconditionError(f"{self.path} is not what `weft login` wrote: remove it, and log in again")

    def _write(self, tokens: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        # Never readable by others, not even for a moment.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"tokens": tokens}, file, indent=2, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def token_for(target: str, given: str | None = None) -> str | None:
    """The token to say to the server at `target`: the one given, WEFT_TOKEN, what `weft login` stored, or none.

    Raises `PreconditionError` where it would travel unencrypted to another machine, unless WEFT_PLAINTEXT_TOKEN is
    "yes".
    """
    token = given or os.environ.get("WEFT_TOKEN") or LoginFile(Home.from_environment()).token(target)
    endpoint = Endpoint.parse(target)
    if token and not endpoint.tls and not endpoint.local and os.environ.get(CLEAR_TEXT) != "yes":
        raise PreconditionError(
            f"a token would travel to {target} for everybody on the way to read: say grpcs://{endpoint.address} where "
            f"the server has TLS (`--tls-cert`), or set {CLEAR_TEXT}=yes",
            reason="PLAINTEXT_TOKEN",
        )
    return token
