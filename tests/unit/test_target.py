from __future__ import annotations

import pytest

from erhpc.client.target import Target, build_head, build_request, parse_target
from erhpc.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "target", "host_header"),
    [
        ("http://a:8000/v1?x=1#part", Target("http", "a", 8000, "/v1?x=1"), "a:8000"),
        ("HTTP://Node7", Target("http", "node7", 80, "/"), "node7"),
        ("http://a:/v1", Target("http", "a", 80, "/v1"), "a"),
        ("https://a.b/v1/", Target("https", "a.b", 443, "/v1/"), "a.b"),
        ("https://a:80/", Target("https", "a", 80, "/"), "a:80"),
        ("http://a?x", Target("http", "a", 80, "/?x"), "a"),
        ("http://[::1]:8000/v1", Target("http", "::1", 8000, "/v1"), "[::1]:8000"),
        ("http://[fe80::1%25eth0]/", Target("http", "fe80::1%eth0", 80, "/"), "[fe80::1]"),
        ("http://b\u00fccher.de/", Target("http", "xn--bcher-kva.de", 80, "/"), "xn--bcher-kva.de"),
        ("http://a/b c/\u00e9%20?q=\u00fc", Target("http", "a", 80, "/b%20c/%C3%A9%20?q=%C3%BC"), "a"),
        ("unix://%2Frun%2FX.sock/v1?x", Target("unix", "/run/X.sock", 0, "/v1?x"), "localhost"),
    ],
)
def test_a_url_is_taken_apart(url: str, target: Target, host_header: str):
    assert parse_target(url) == target
    assert target.host_header == host_header
    assert target.scheme == "unix" or parse_target(target.url).path == target.path


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "a/v1",
        "ftp://a/",
        "http://",
        "http:///v1",
        "http://a:99999/",
        "http://a:x/",
        "http://a:0/",
        "http://[::1/",
        "http://a b/",
        "http://a\x01b/",
        "http://" + "a" * 64 + ".b/",
        "http://a..b/",
        "unix:///run/x.sock",
        "file:///etc/passwd",
    ],
)
def test_what_cannot_be_asked_is_refused_with_what_is_allowed(url: str):
    with pytest.raises(ConfigError, match="http://host:port/path"):
        parse_target(url)


def test_a_user_in_the_url_is_refused_without_repeating_the_password():
    with pytest.raises(ConfigError, match="bearer token") as raised:
        parse_target("http://me:secret@a/")
    assert "secret" not in str(raised.value)


FROM = Target("http", "a", 8000, "/v1/chat?x=1")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/v2", Target("http", "a", 8000, "/v2")),
        ("other?y", Target("http", "a", 8000, "/v1/other?y")),
        ("?y=2", Target("http", "a", 8000, "/v1/chat?y=2")),
        ("//b/v1", Target("http", "b", 80, "/v1")),
        ("https://b:1/v1#x", Target("https", "b", 1, "/v1")),
        ("http://[::1]:9/", Target("http", "::1", 9, "/")),
        ("", FROM),
    ],
)
def test_a_redirect_is_resolved_against_what_was_asked(location: str, target: Target):
    assert FROM.resolve(location) == target


@pytest.mark.parametrize(
    "location",
    ["unix://%2Frun%2Fdocker.sock/v1", "UNIX://%2Fx/", "ftp://a/", "http://a:x/", "http://[::1", "//u:p@b/"],
)
def test_a_redirect_leads_to_no_file_of_this_machine_and_to_nothing_that_is_no_url(location: str):
    with pytest.raises(ConfigError):
        FROM.resolve(location)


def test_a_server_behind_a_unix_socket_redirects_to_itself_or_elsewhere():
    target = Target("unix", "/run/x.sock", 0, "/v1/chat")
    assert target.resolve("/v2") == Target("unix", "/run/x.sock", 0, "/v2")
    assert target.resolve("other") == Target("unix", "/run/x.sock", 0, "/v1/other")
    assert target.resolve("http://localhost/v2?x") == Target("unix", "/run/x.sock", 0, "/v2?x")
    assert target.resolve("https://b/v2") == Target("https", "b", 443, "/v2")
    with pytest.raises(ConfigError):
        target.resolve("unix://%2Fother/")


def test_a_request_is_its_head_its_length_and_its_body():
    request = build_request(build_head(Target("http", "a", 8000, "/v1"), "k-1"), b'{"a":1}')
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1 HTTP/1.1"
    assert lines[1] == b"Host: a:8000"
    assert {b"Authorization: Bearer k-1", b"Content-Length: 7", b"Accept-Encoding: identity"} < set(lines)
    assert body == b'{"a":1}'
    assert b"x-session-id" not in head
    assert b"Authorization" not in build_head(FROM, None)


def test_a_request_of_a_session_names_it():
    request = build_request(build_head(Target("http", "a", 8000, "/v1"), "k-1"), b'{"a":1}', b"17")
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[-2:] == [b"Content-Length: 7", b"x-session-id: 17"]
    assert body == b'{"a":1}'


@pytest.mark.parametrize("key", ["k\n", "k\r\nX: y", "k k", "k\u00e9", "k\x00"])
def test_a_key_that_no_field_may_carry_is_refused_without_repeating_it(key: str):
    with pytest.raises(ConfigError, match="line end") as raised:
        build_head(FROM, key)
    assert key not in str(raised.value)
