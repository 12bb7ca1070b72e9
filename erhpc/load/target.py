"""Whom a client asks: a URL taken apart, and the unchanging bytes of every request to it.

Pure: it opens nothing. The native client needs no more of HTTP's request side than this.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urljoin, urlsplit

from erhpc.errors import ConfigError

DEFAULT_PORTS = {"http": 80, "https": 443}
SCHEMES = ("http", "https", "unix")


@dataclass(frozen=True, slots=True)
class Target:
    """One resource of one server."""

    scheme: str
    host: str
    """Name or address without brackets; for a Unix socket its path."""
    port: int
    path: str
    """With the query, as it stands in the request line."""

    @property
    def origin(self) -> tuple[str, str, int]:
        """What a connection belongs to."""
        return (self.scheme, self.host, self.port)

    @property
    def host_header(self) -> str:
        """The value of the Host field (RFC 9110, section 7.2): an IPv6 address in brackets, a port if not default."""
        if self.scheme == "unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def resolve(self, location: str) -> Target:
        """The target that a redirect from here points at. Raises ConfigError if that is no URL."""
        if self.scheme == "unix":
            return Target("unix", self.host, 0, location if location.startswith("/") else f"/{location}")
        return parse_target(urljoin(f"{self.scheme}://{self.host_header}{self.path}", location))


def parse_target(url: str) -> Target:
    """Take apart `http://host:port/path`, `https://..`, or `unix://<socket path, / as %2F>/path`.

    Raises:
        ConfigError: it is none of these.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"url={url!r} is no URL: {error}. Give http://host:port/path.") from error
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "unix" and parts.netloc:
        return Target("unix", unquote(parts.netloc), 0, path)
    if parts.scheme not in DEFAULT_PORTS or not host:
        raise ConfigError(f"url={url!r} cannot be asked. Allowed: {', '.join(f'{s}://...' for s in SCHEMES)}.")
    return Target(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path)


def build_head(target: Target, key: str | None) -> bytes:
    """The head of a streaming POST to `target`, up to the value of Content-Length.

    `Accept-Encoding: identity`: compressing would hold tokens back until a block is full.
    """
    fields = [
        f"POST {target.path} HTTP/1.1",
        f"Host: {target.host_header}",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        "Accept-Encoding: identity",
        "User-Agent: erhpc",
        *([f"Authorization: Bearer {key}"] if key else []),
        "Content-Length: ",
    ]
    return "\r\n".join(fields).encode()


def build_request(head: bytes, body: bytes) -> bytes:
    """All bytes of one request, `head` being what `build_head` made."""
    return b"%b%d\r\n\r\n%b" % (head, len(body), body)
