"""TLS to a server, with an error that says why there is none."""

from __future__ import annotations

import ssl

import trio

from trio_swarm.errors import HandshakeError

__all__ = ["secure"]


async def secure(
    stream: trio.SocketStream, host: str, ssl_context: ssl.SSLContext | None
) -> trio.SSLStream[trio.SocketStream]:
    """``stream`` with TLS, whose handshake is done and whose certificate is ``host``'s.

    Without ``ssl_context``, the system's authorities are trusted. Raises `HandshakeError`, with
    the reason, for a certificate that is not trusted and for a peer that does not speak TLS.
    The stream is closed on an error and when cancelled.
    """
    try:
        if ssl_context is None:
            # It reads the system's certificates: tens of milliseconds, not in the loop.
            ssl_context = await trio.to_thread.run_sync(ssl.create_default_context)
        # Most peers end without TLS' own goodbye; HTTP and WebSocket both know their end.
        secured = trio.SSLStream(stream, ssl_context, server_hostname=host, https_compatible=True)
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise HandshakeError(f"no TLS with {host}: {error.__cause__ or error}") from error
    except BaseException:
        # Cancelled, or no certificates on this system.
        await trio.aclose_forcefully(stream)
        raise
    return secured
