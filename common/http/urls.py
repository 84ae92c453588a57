"""Checks that a text is the URL of a server."""

from urllib.parse import urlsplit


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
