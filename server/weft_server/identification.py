"""Who calls an inference server: by its own registry's tokens, or by what the registry elsewhere says of the caller's.

Without `--auth` a server over a registry elsewhere still asks it, since what its own token may read is not for
everybody: where that registry asks callers who they are, an adapter is used only by those who may read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weft_registry.access.authenticator import Authenticator
from weft_registry.api import RegistryApi
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError
from weft_registry.remote.identities import RemoteAuthenticator, asks_for_tokens
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.serve.authentication import AuthenticationInterceptor
from weft_server.options import ServeOptions


@dataclass(frozen=True)
class Identification:
    """How a server tells its callers."""

    interceptors: Sequence[AuthenticationInterceptor]
    hub: Authenticator | None
    """For the Hugging Face face, which only a registry of this process has."""
    close: Callable[[], None]


def identification(registry: RegistryApi, options: ServeOptions) -> Identification:
    """What the options ask for. Raises `InvalidInputError` for what the registry does not go along with. Blocks."""
    access = options.access
    if isinstance(registry, EmbeddedRegistry):
        authenticator = registry.authenticator(access.anonymous)
        interceptor = AuthenticationInterceptor(authenticator, registry)
        return Identification([interceptor], authenticator, _nothing)
    if access.anonymous_read:
        raise InvalidInputError(
            "--anonymous-read: who may read without a token is for the registry to say, and this server's is elsewhere"
        )
    if not isinstance(registry, RemoteRegistry):
        return Identification([], None, _nothing)
    target = registry.target
    if access.required and asks_for_tokens(target) is False:
        raise InvalidInputError(
            f"--auth: the registry at {target} asks nobody who they are, and so cannot say it: start it with --auth"
        )
    remote = RemoteAuthenticator(target, must_ask=access.required)
    return Identification([AuthenticationInterceptor(remote, None, required=access.required)], None, remote.close)


def _nothing() -> None:
    """Nothing was opened."""
