"""Listening sockets: bound once, before anything else starts, and refused where plain bytes could leave the machine;
and the acceptor of connections that have something to say before HTTP: a PROXY header, a TLS handshake.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable
from logging import getLogger
from typing import Protocol, cast

from cube_mesh.admission import Admission
from cube_mesh.errors import ConfigError, FramingError
from cube_mesh.forwarded import Trust
from cube_mesh.proxy_protocol import HeaderReader
from cube_mesh.settings import Listen
from cube_mesh.turns import REST_S, Turns

_AT_ONCE = 8  # connections accepted before others get their turn
_AT_THE_END = 65_536
_LAST_OPENING_S = 1.0
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_REST_S = 1.0
_UNSENT_IN_KERNEL = 32_768  # without a bound it grows to megabytes for a client that does not read
_log = getLogger("cube_mesh.listener")


def is_loopback(host: str) -> bool:
    """Whether a host names this machine only. A name other than ``localhost`` is not looked up: it is not loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int, backlog: int) -> socket.socket:
    """A bound, listening, inheritable-by-choice TCP socket. Raises ConfigError with the address and the reason.

    Accepted sockets inherit what is set here: the kernel takes at most ``_UNSENT_IN_KERNEL`` bytes ahead of a reader.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", key="listen") from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_IN_KERNEL)
    return sock


def check_plain(listen: Listen) -> None:
    """A listener without TLS is on loopback, unless the configuration names the danger; else ConfigError."""
    if not listen.tls.cert_file and not is_loopback(listen.host) and not listen.unsafe_plain_non_loopback:
        raise ConfigError(
            "a listener without TLS must be on loopback; set listen.tls.cert_file, put a TLS-terminating peer in "
            "front, or set unsafe_plain_non_loopback",
            key="listen.host",
        )


def bind_edge(listen: Listen) -> socket.socket:
    """The socket that tenants connect to. Raises ConfigError."""
    check_plain(listen)
    return bind(listen.host, listen.port, listen.backlog)


class Opened(Protocol):
    """A connection's protocol. ``connected``: connection_made has been called, so that it ends by connection_lost."""

    @property
    def connected(self) -> bool: ...


class Accepting:
    """Accepts on ``sock``. ``turns``: of one of several processes, which takes one connection in a turn of the loop and
    leaves the next one to others that have fewer. EPOLLEXCLUSIVE would give them all to the one that listened last.
    """

    def __init__(self, sock: socket.socket, turns: Turns | None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._turns = turns
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def opening(self) -> int:
        """Connections that have been accepted and have no protocol yet."""
        return len(self._opening)

    def start(self) -> None:
        """Accept from now on, in the running loop."""
        self._loop = asyncio.get_running_loop()
        if self._turns is not None:
            self._turns.say()
        self._listen()

    def stop(self) -> None:
        """No further connection. Those that waited are taken first: their clients have sent a request, perhaps. They,
        and others that have not opened, have ``_LAST_OPENING_S`` for it.
        """
        if not self._closed:
            self._take(_AT_THE_END)
            self._closed = True
            if self._turns is not None:
                self._turns.leave()
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._loop.call_later(_LAST_OPENING_S, self._drop)

    def close(self) -> None:
        """``stop``, and drop those that have not opened yet."""
        self.stop()
        self._drop()

    def _drop(self) -> None:
        for task in self._opening:
            task.cancel()

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        turns = self._turns
        if turns is not None and turns.wait(self._loop.time()):
            self._rest(REST_S)
            return
        error = self._take(_AT_ONCE if turns is None else 1)
        if turns is not None:
            turns.say()
        if error:
            _log.error("cannot accept: %s; trying again in %.0f s", error, _REST_S)
            self._rest(_REST_S)

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._loop.call_later(seconds, self._listen)

    def _take(self, most: int) -> str:
        """Accept what waits; why there can be no more for a while, "" if there can."""
        for _ in range(most):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return ""
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    continue  # of that one connection: accept(2) passes on what its network had to say
                return str(error.strerror)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._guarded(sock, str(address[0])))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return ""

    async def _guarded(self, sock: socket.socket, peer: str) -> None:
        """Open a connection; whatever goes wrong closes its socket."""
        raise NotImplementedError


class PlainAcceptor(Accepting):
    """Hands over connections as they come; the protocol of ``make()`` counts them itself."""

    def __init__(self, sock: socket.socket, make: Callable[[], asyncio.BaseProtocol], turns: Turns | None) -> None:
        super().__init__(sock, turns)
        self._make = cast(Callable[[], asyncio.Protocol], make)

    async def _guarded(self, sock: socket.socket, peer: str) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, sock)
        except (OSError, asyncio.CancelledError):
            sock.close()


class Acceptor(Accepting):
    """Counts with ``admission`` from the first byte on, and hands over what has opened in time.

    ``make(address)`` gives the protocol of a client's address, which is counted already; ``context()`` the TLS context
    of the moment, None without TLS. Whoever may not come in is closed without an answer: before TLS there is none.
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[str], Opened],
        admission: Admission,
        trust: Trust,
        listen: Listen,
        context: Callable[[], ssl.SSLContext] | None,
        on_protocol_error: Callable[[str], None],
        turns: Turns | None,
    ) -> None:
        super().__init__(sock, turns)
        self._make = make
        self._admission = admission
        self._trust = trust
        self._header_first = listen.proxy_protocol
        self._context = context
        self._handshake_s = listen.tls.handshake_s
        self._on_protocol_error = on_protocol_error

    async def _guarded(self, sock: socket.socket, peer: str) -> None:
        """Open; whatever goes wrong closes the socket and is counted, not logged: strangers cause it."""
        try:
            if len(self._opening) > self._admission.max_connections:
                self._admission.refused["connections"] += 1
                raise ConnectionRefusedError
            async with asyncio.timeout(self._handshake_s):
                address = await self._client_of(sock, peer) if self._header_first else peer
                await self._open(sock, address, exempt=self._trust.covers(peer))
        except FramingError as error:
            self._on_protocol_error(error.code)
            sock.close()
        except (OSError, asyncio.CancelledError):
            sock.close()

    async def _client_of(self, sock: socket.socket, peer: str) -> str:
        if not self._trust.covers(peer):
            raise FramingError("untrusted_proxy", "This peer may not speak for others.")
        reader = HeaderReader()
        while True:
            data = await self._loop.sock_recv(sock, reader.wants)
            if not data:
                raise ConnectionResetError
            source = reader.feed(data)
            if source is not None:
                return source.address or peer

    async def _open(self, sock: socket.socket, address: str, *, exempt: bool) -> None:
        if not self._admission.enter(address, exempt=exempt):
            raise ConnectionRefusedError
        protocol = self._make(address)
        context = self._context() if self._context is not None else None
        patience = self._handshake_s if context is not None else None
        try:
            await self._loop.connect_accepted_socket(
                lambda: cast(asyncio.Protocol, protocol), sock, ssl=context, ssl_handshake_timeout=patience
            )
        except BaseException:
            if not protocol.connected:
                self._admission.leave(address)
                self._admission.refused["handshake"] += 1
            raise
