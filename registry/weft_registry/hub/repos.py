"""What Hub clients ask and say about repositories and about themselves: documents in, documents out.

A repository is an adapter. What the Hub has and this registry has not (private repositories, moves, Spaces) is refused
in words; nothing that somebody asked for is left out silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft_registry import card
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.principal import EVERY, Principal, Scope
from weft_registry.reference import AdapterName

_REPO_KEYS = {"name", "organization", "type", "private", "visibility"}


def whoami(principal: Principal) -> dict[str, Any]:
    """The caller, as the Hub describes a user and a token."""
    role = "write" if Scope.PUBLISH in principal.scopes or Scope.ADMIN in principal.scopes else "read"
    namespaces = sorted(principal.namespaces - {EVERY})
    return {
        "type": "user",
        "id": principal.name,
        "name": principal.name,
        "fullname": principal.name,
        "isPro": False,
        "canPay": False,
        "orgs": [{"type": "org", "id": name, "name": name, "fullname": name} for name in namespaces],
        "auth": {"type": "access_token", "accessToken": {"displayName": principal.name, "role": role}},
    }


def create(registry: EmbeddedRegistry, principal: Principal, open_to_all: bool, said: Mapping[str, Any]) -> AdapterName:
    """Makes an adapter without versions. `open_to_all`: whoever has no token may read here.

    Raises `AlreadyExistsError` (the answer to it names the adapter too), `InvalidInputError`, `UnsupportedError`.
    """
    adapter = named(principal, said)
    for key, value in said.items():
        if key not in _REPO_KEYS and value is not None:
            raise UnsupportedError(f"{key[:60]}: a repository here is an adapter, which has no such thing")
    visibility = said.get("visibility") or ("private" if said.get("private") else "public")
    if visibility != "public" and open_to_all:
        raise UnsupportedError(
            f"{adapter}: this registry has no private repositories: whoever reaches it reads everything in it. Serve "
            "it so that reading needs a token, or leave `private` out",
            reason="NO_PRIVATE_REPOSITORIES",
        )
    registry.workspaces.create_adapter(adapter)
    return adapter


def delete(registry: EmbeddedRegistry, principal: Principal, said: Mapping[str, Any]) -> None:
    """Removes an adapter that has no versions. Raises `NotFoundError`, `PreconditionError`."""
    for key in said:
        if key not in {"name", "organization", "type"}:
            raise InvalidInputError(f"{key[:60]}: unknown")
    registry.workspaces.delete_adapter(named(principal, said))


def named(principal: Principal, said: Mapping[str, Any]) -> AdapterName:
    """The adapter that a document names as the Hub does: by organization and name."""
    kind, name, organization = said.get("type") or "model", said.get("name"), said.get("organization")
    if kind != "model":
        raise UnsupportedError(f"type {str(kind)[:40]!r}: this registry keeps adapters, as models")
    if not isinstance(name, str) or not isinstance(organization, str | None):
        raise InvalidInputError("expected a string as 'name', and one or none as 'organization'")
    if organization is None and "/" in name:
        organization, _, name = name.partition("/")
    if organization is None and len(principal.namespaces - {EVERY}) == 1 and not principal.everywhere:
        (organization,) = principal.namespaces
    if organization is None:
        raise InvalidInputError(f"{name[:100]!r}: an adapter's name is NAMESPACE/NAME: say the namespace too")
    return AdapterName.parse(f"{organization}/{name}")


def validate_yaml(said: Mapping[str, Any]) -> list[str]:
    """What is wrong with a model card: what a publish would refuse it for."""
    content = said.get("content")
    if not isinstance(content, str):
        raise InvalidInputError("content: expected a string")
    try:
        card.check(content.encode("utf-8", "surrogatepass"))
    except InvalidInputError as error:
        return [error.message]
    return []
