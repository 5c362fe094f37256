"""Fetches pictures from the hosts of a list, and reaches no network but the public one.

Each hop of a redirection is checked like the first: its host is on the list, and all addresses that the name stands for
are public. The connection goes to the address that was checked, as the name may mean another one a moment later.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

from chameleon_jax.errors import printable
from chameleon_jax.serving.errors import RequestError, invalid, too_large

MOST_HOPS = 3
SECONDS = 15.0
"""Time for a picture with all hops."""
_PART = 1 << 16

Resolve = Callable[[str, int], Sequence[str]]


def addresses_of(host: str, port: int) -> list[str]:
    """IP addresses that a name stands for."""
    return [found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet: not to this machine, a private network, or a cloud's metadata; and
    holds no such IPv4 address within."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        return ip.is_global and ip in _UNICAST and not (ip.sixtofour or ip.teredo)
    return ip.is_global and not ip.is_multicast


_UNICAST = ipaddress.ip_network("2000::/3")


class Fetcher:
    """Gets files from the hosts of a list.

    Args:
      hosts: names of hosts; none: everything is refused.
      most_bytes: of a file.
      resolve, allowed: as the functions above.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        most_bytes: int,
        *,
        resolve: Resolve = addresses_of,
        allowed: Callable[[str], bool] = is_public,
    ):
        self._hosts, self._most_bytes = {host.lower().rstrip(".") for host in hosts}, most_bytes
        self._resolve, self._allowed = resolve, allowed

    def fetch(self, url: str, place: str) -> bytes:
        """The file at an http or https address.

        Args:
          place: of the address in the request, for messages.

        Raises:
          RequestError: if the address is not allowed, does not answer, or answers with anything but one file.
        """
        deadline = time.monotonic() + SECONDS
        for _ in range(1 + MOST_HOPS):
            parts, address = self._check(url, place)
            try:
                with _response(parts, address, deadline) as response:
                    if response.status not in (301, 302, 303, 307, 308):
                        return self._read(response, url, place, deadline)
                    url = urljoin(url, response.headers.get("Location", ""))
            except (OSError, http.client.HTTPException) as error:
                raise _failed(url, place, str(error) or type(error).__name__) from None
        raise _failed(url, place, f"more than {MOST_HOPS} redirections")

    def _check(self, url: str, place: str) -> tuple[SplitResult, str]:
        """The parts of an address and the IP address to connect to."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port or {"https": 443, "http": 80}.get(parts.scheme)
            url.encode("ascii")
        except ValueError:
            raise invalid(f"{place} = {printable(url, 100)!r}: is no address", place) from None
        if not self._hosts:
            raise invalid(
                f"{place}: this server does not fetch pictures; send them as data:image/png;base64,…",
                place,
                "no_fetching",
            )
        if port is None or host not in self._hosts or parts.username or not url.isprintable():
            raise invalid(f"{place}: pictures are not fetched from {printable(host)!r}", place, "host_not_allowed")
        try:
            addresses = self._resolve(host, port)
        except OSError as error:
            raise _failed(url, place, error.strerror or str(error)) from None
        if not addresses or not all(map(self._allowed, addresses)):
            raise invalid(f"{place}: {printable(host)!r} is no public address", place, "host_not_allowed")
        return parts._replace(netloc=f"{host}:{port}"), addresses[0]

    def _read(self, response: http.client.HTTPResponse, url: str, place: str, deadline: float) -> bytes:
        if response.status != 200:
            raise _failed(url, place, f"status {response.status}")
        content = bytearray()
        while part := response.read1(_PART):
            content += part
            if len(content) > self._most_bytes:
                raise too_large(f"{place}: the picture has more than {self._most_bytes:,} bytes", place)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no whole answer within {SECONDS:.0f} seconds")
        return bytes(content)


@contextlib.contextmanager
def _response(parts: SplitResult, address: str, deadline: float) -> Iterator[http.client.HTTPResponse]:
    """The answer of the server at `address` to a request for the host's file."""
    left = max(0.1, deadline - time.monotonic())
    with socket.create_connection((address, parts.port), timeout=left) as plain, contextlib.ExitStack() as stack:
        connected = plain
        if parts.scheme == "https":
            connected = stack.enter_context(
                ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
            )
        connection = http.client.HTTPConnection(parts.hostname, parts.port)
        connection.sock = connected
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "chameleon-jax"})
        yield connection.getresponse()


def _failed(url: str, place: str, reason: str) -> RequestError:
    host = printable(urlsplit(url).hostname or "")
    return RequestError(422, f"{place}: no picture from {host!r}: {printable(reason)}", "fetch_failed", param=place)
