"""What every part of the schema is built of: sections, ranges of numbers, secrets, a server's keys, URLs of servers."""

from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta, Struct

Share = Annotated[float, Meta(ge=0, le=1)]
OpenShare = Annotated[float, Meta(gt=0, lt=1)]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
TurnWeight = Annotated[float, Meta(gt=0, le=1000)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping in the config file. Every key has a default; unknown keys are refused."""


class Secret:
    """A key that appears as `***` wherever it is printed, logged or written."""

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "***" if self._value else ""


NO_KEY = Secret()


class ServerConfig(Section, frozen=True):
    host: str = "localhost"
    """Address to listen on."""
    port: Port = 8080
    """TCP port; 0: any free one."""
    drain_seconds: Annotated[float, Meta(ge=0)] = 10.0
    """Seconds that running requests may still take after SIGTERM."""
    api_keys: list[Secret] = []
    """Keys, one of which every request must show as `Authorization: Bearer KEY`; empty: open to all. Each key is a
    tenant: what is kept of its prompts is not used for another's."""
    cors_origins: list[str] = []
    """Web origins whose pages may call this server; `*`: any. A server on loopback, which pages could reach by a name
    of their own, takes only `localhost`, addresses, and the host names of these origins."""


def decode_secret(type_: type, value: object) -> object:
    """msgspec's `dec_hook` for the config: a string becomes a Secret."""
    if type_ is not Secret or not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return Secret(value)


def url_problem(url: str) -> str | None:
    """Why `url` cannot be a server's address, or None; a password in it is not repeated."""
    try:
        parts = urlsplit(url)
        port = parts.port  # raises ValueError where it is no port number
    except ValueError as error:
        return f"{url!r} is no URL ({error})"
    if "@" in parts.netloc:
        return "a user or password does not belong in a URL; set the API key instead"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return f"{url!r} is no URL of a server, like http://localhost:8081"
    if parts.query or parts.fragment or any(character.isspace() for character in url):
        return f"{url!r} is more than a server's address, like http://localhost:8081"
    return None
