"""A TCP proxy on loopback that passes requests on and loses the answers to some, with their connections."""

from contextlib import asynccontextmanager

import trio

PIECE_BYTES = 65536


class LossyProxy:
    """``lose`` is a part of a request whose answer is to be lost, with the connection, as often as ``losses`` says."""

    def __init__(self, target_port):
        self.port = 0
        self.lose = b""
        self.losses = 0
        self.lost = 0
        self._target_port = target_port

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, client):
        async with client, await trio.open_tcp_stream("127.0.0.1", self._target_port) as server:
            is_losing = trio.Event()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._requests, client, server, is_losing)
                    nursery.start_soon(self._answers, server, client, is_losing)
            except* (trio.BrokenResourceError, trio.ClosedResourceError, _OverError):
                pass

    async def _requests(self, client, server, is_losing):
        while piece := await client.receive_some(PIECE_BYTES):
            if self.lose and self.lose in piece and self.lost < self.losses:
                self.lost += 1
                is_losing.set()
            await server.send_all(piece)
        raise _OverError

    async def _answers(self, server, client, is_losing):
        while piece := await server.receive_some(PIECE_BYTES):
            if is_losing.is_set():  # the server has done it
                raise _OverError
            await client.send_all(piece)
        raise _OverError


class _OverError(Exception):
    pass


@asynccontextmanager
async def lossy_proxy(target_port):
    """A proxy to a port of loopback, running."""
    proxy = LossyProxy(target_port)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy._serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
