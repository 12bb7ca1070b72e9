"""Whom a client asks: a URL taken apart, and the unchanging bytes of every request to it.

Pure: it opens nothing. The native client needs no more of HTTP's request side than this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from erhpc.errors import ConfigError
from erhpc.plan.protocol import SESSION_HEADER

DEFAULT_PORTS = {"http": 80, "https": 443}
_FORMS = "http://host:port/path, https://host:port/path, unix://%2Fpath%2Fof%2Fsocket/path"
_HOST = re.compile(r"[\w.:%~!$&'()*+,;=-]+", re.ASCII)
_SESSION_FIELD = SESSION_HEADER.encode()
_KEY = re.compile(r"[\x21-\x7e]+")
_IN_REQUEST_LINE = "!#$%&'()*+,/:;=?@[]~"
"""What stands in a request line as it is; the rest of a URL is percent-encoded."""


@dataclass(frozen=True, slots=True)
class Target:
    """One resource of one server."""

    scheme: str
    host: str
    """Name (in ASCII) or address without brackets; for a Unix socket its path."""
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
        # The zone of a link-local address means something on this machine only (RFC 6874, section 4).
        host = f"[{self.host.partition('%')[0]}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL of a target that is no Unix socket."""
        return f"{self.scheme}://{self.host_header}{self.path}"

    def resolve(self, location: str) -> Target:
        """The target that a redirect from here points at.

        Raises:
            ConfigError: that is no URL, or one that a server has no business to send its clients to.
        """
        base = self.url if self.scheme != "unix" else f"http://localhost{self.path}"
        try:
            url = urljoin(base, location)
        except ValueError as error:
            raise ConfigError(f"location={location!r} is no URL: {error}.") from error
        found = parse_target(url)
        if found.scheme == "unix":
            raise ConfigError(f"location={location!r}: no server may send a client to a Unix socket of its machine.")
        is_here = self.scheme == "unix" and found.host == "localhost"
        return Target("unix", self.host, 0, found.path) if is_here else found


def parse_target(url: str) -> Target:
    """Take apart `http://host:port/path`, `https://..`, or `unix://<socket path, / as %2F>/path`.

    Raises:
        ConfigError: it is none of these.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix" and parts.netloc:
            return Target("unix", unquote(parts.netloc), 0, _path_of(parts))
        host, port = _ascii_host(parts.hostname or ""), parts.port
    except ValueError as error:
        raise ConfigError(f"url={url!r} is no URL: {error}. Allowed: {_FORMS}.") from error
    if parts.scheme not in DEFAULT_PORTS or not _HOST.fullmatch(host) or port == 0:
        raise ConfigError(f"url={url!r} cannot be asked. Allowed: {_FORMS}.")
    if parts.username is not None:
        raise ConfigError(f"url of {host}: a user in the URL is not sent. Take it out; a key goes as a bearer token.")
    return Target(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], _path_of(parts))


def build_head(target: Target, key: str | None) -> bytes:
    """The head of a streaming POST to `target`, up to the value of Content-Length.

    `Accept-Encoding: identity`: compressing would hold tokens back until a block is full.

    Raises:
        ConfigError: `key` cannot stand in a header field.
    """
    if key and not _KEY.fullmatch(key):
        raise ConfigError(
            "The key has characters that no header field may carry (a line end, a space or non-ASCII ones). "
            "Look at its end: files often add a line end."
        )
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


def build_request(head: bytes, body: bytes, session: bytes = b"") -> bytes:
    """All bytes of one request, `head` being what `build_head` made; `session` is the one it names, if any."""
    if not session:
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)
    return b"%b%d\r\n%b: %b\r\n\r\n%b" % (head, len(body), _SESSION_FIELD, session, body)


def _path_of(parts: SplitResult) -> str:
    return quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_IN_REQUEST_LINE)


def _ascii_host(host: str) -> str:
    """`host` as the network knows it: international names by IDNA, the zone of an address after a bare `%`."""
    if ":" in host:
        return host.replace("%25", "%", 1)
    return host.encode("idna").decode("ascii")  # UnicodeError, a ValueError, if a label is empty or too long
