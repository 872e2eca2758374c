"""A resolver that knows no name: what a test asks it for never leaves this machine."""

from __future__ import annotations

import socket

import trio

__all__ = ["know_no_names"]


class _NoNames(trio.abc.HostnameResolver):
    async def getaddrinfo(self, host, port, *about):
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, sockaddr, flags):
        raise AssertionError("nobody asks for it")


def know_no_names() -> None:
    """For the rest of this run of Trio: numeric addresses alone."""
    trio.socket.set_custom_hostname_resolver(_NoNames())
