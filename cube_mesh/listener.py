"""Listening sockets: bound once, before anything else starts, and refused where plain bytes could leave the machine."""

from __future__ import annotations

import ipaddress
import socket

from cube_mesh.errors import ConfigError
from cube_mesh.settings import Listen


def is_loopback(host: str) -> bool:
    """Whether a host names this machine only. A name other than ``localhost`` is not looked up: it is not loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int, backlog: int) -> socket.socket:
    """A bound, listening, inheritable-by-choice TCP socket. Raises ConfigError with the address and the reason."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", key="listen") from None


def check_plain(listen: Listen) -> None:
    """A listener without TLS is on loopback, unless the configuration names the danger; else ConfigError."""
    if not is_loopback(listen.host) and not listen.unsafe_plain_non_loopback:
        raise ConfigError(
            "a listener without TLS must be on loopback; put a TLS-terminating peer in front, "
            "or set unsafe_plain_non_loopback",
            key="listen.host",
        )


def bind_plain(listen: Listen, default_port: int) -> socket.socket:
    """The socket of a listener without TLS. Raises ConfigError."""
    check_plain(listen)
    return bind(listen.host, listen.port or default_port, listen.backlog)
