"""A TCP proxy between robot and server that does what networks and hosts do wrong.

    python scripts/fault_proxy.py HOST:PORT [LISTEN_HOST]

It prints its address, then takes commands, a line each: ``pass``, ``hold``, ``mute``,
``delay SECONDS``, ``sever up|down BYTES``. Each is answered with the monotonic time at which it
was carried out; of ``sever``, at which the connection was cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Proxy"]

_CHUNK_BYTES = 1 << 14
_WAITING = 256
"""Chunks that are under way in one direction at a time: more hold the sender up, as a full queue
does."""

SEVER_S = 10.0
"""Longest wait for the bytes after which a connection is cut."""


@dataclass(eq=False)
class _Pair:
    """One robot's connection and the one to the server.

    Attributes:
        writers: What is written to, by direction.
        tasks: What copies.
        deaf: Whether its bytes are dropped from now on.
    """

    writers: dict[str, asyncio.StreamWriter] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    deaf: bool = False

    def abort(self) -> None:
        for writer in self.writers.values():
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()


class Proxy:
    """Passes connections on to a server until it is told to do something else.

    Every command is safe to give from any thread and has taken effect when it returns. A context
    manager.

    Args:
        host: Host of the server.
        port: Its port.
        listen: Address to listen on.
    """

    def __init__(self, host: str, port: int, *, listen: str = "127.0.0.1") -> None:
        self._target = host, port
        self._socket = socket.create_server((listen, 0))
        self.address = "{}:{}".format(*self._socket.getsockname()[:2])
        self._pairs: set[_Pair] = set()
        self._mute = False
        self._delay_s = 0.0
        self._cut: tuple[str, int] | None = None
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._severed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        self._do(self._listen())

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pass_on(self) -> None:
        """Do as a network should; what was held goes on its way, what was muted stays mute."""
        self._do(self._set(mute=False, delay_s=0.0, flowing=True))

    def hold(self) -> None:
        """Keep every byte until told to pass them on: a host that is frozen."""
        self._do(self._set(flowing=False))

    def mute(self) -> None:
        """Accept connections and never answer; drop what comes on those that there are."""
        self._do(self._set(mute=True))

    def delay(self, seconds: float) -> None:
        """Let every byte take so much longer, each way."""
        self._do(self._set(delay_s=seconds))

    def sever(self, direction: str, after_bytes: int, *, within_s: float = SEVER_S) -> bool:
        """Cut the connection that carries so many bytes more, and wait until that was.

        Args:
            direction: ``up`` to the server, or ``down``.
            after_bytes: Bytes in this direction that still get through, of all connections.
            within_s: Longest wait; after it nothing is cut.

        Returns:
            Whether it was cut; false where too little was sent in this direction.
        """
        self._severed.clear()
        self._do(self._set(cut=(direction, after_bytes)))
        if self._severed.wait(within_s):
            return True
        self._do(self._set(cut=("", 0)))
        return False

    def close(self) -> None:
        """Cut all connections and end; safe to call again."""
        if self._loop.is_closed():
            return
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- the loop's own thread ---------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _listen(self) -> None:
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, sock=self._socket)

    async def _set(
        self,
        *,
        mute: bool | None = None,
        delay_s: float | None = None,
        flowing: bool | None = None,
        cut: tuple[str, int] | None = None,
    ) -> None:
        if mute is not None:
            self._mute = mute
        if mute:
            for pair in self._pairs:
                pair.deaf = True
        if delay_s is not None:
            self._delay_s = delay_s
        if flowing is not None:
            (self._flowing.set if flowing else self._flowing.clear)()
        if cut is not None:
            self._cut = cut

    async def _end(self) -> None:
        self._server.close()
        for pair in self._pairs:
            pair.abort()
        while self._pairs:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    async def _accept(
        self, from_robot: asyncio.StreamReader, to_robot: asyncio.StreamWriter
    ) -> None:
        pair = _Pair({"down": to_robot}, deaf=self._mute)
        self._pairs.add(pair)
        try:
            if pair.deaf:
                pair.tasks.append(self._loop.create_task(_drop(from_robot)))
            else:
                from_server, to_server = await asyncio.open_connection(*self._target)
                pair.writers["up"] = to_server
                for direction, reader in (("up", from_robot), ("down", from_server)):
                    pair.writers[direction].transport.set_write_buffer_limits(0)
                    pair.tasks += self._copy(pair, direction, reader)
            await asyncio.wait(pair.tasks, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # no server there: the robot's connection is closed, as its host would
        finally:
            pair.abort()
            self._pairs.discard(pair)

    def _copy(
        self, pair: _Pair, direction: str, reader: asyncio.StreamReader
    ) -> list[asyncio.Task[None]]:
        """Copy one direction: one task reads, another writes when it is time."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING)

        async def read() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHUNK_BYTES):
                    if not pair.deaf:
                        await chunks.put((self._loop.time() + self._delay_s, data))
            if pair.deaf:  # a host that is gone does not say goodbye
                await asyncio.Event().wait()
            await chunks.put((0.0, b""))
            await asyncio.Event().wait()

        async def write() -> None:
            while True:
                at_s, data = await chunks.get()
                await asyncio.sleep(max(at_s - self._loop.time(), 0.0))
                await self._flowing.wait()
                if not data:
                    return
                if pair.deaf:
                    continue
                data, over = self._part(direction, data)
                pair.writers[direction].write(data)
                with contextlib.suppress(OSError):
                    await pair.writers[direction].drain()
                if over:
                    self._severed.set()
                    return

        return [self._loop.create_task(read()), self._loop.create_task(write())]

    def _part(self, direction: str, data: bytes) -> tuple[bytes, bool]:
        """Return as much as gets through, and whether that was all."""
        if self._cut is None or self._cut[0] != direction:
            return data, False
        left = self._cut[1]
        if len(data) <= left:
            self._cut = direction, left - len(data)
            return data, False
        self._cut = None
        return data[:left], True


async def _drop(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(_CHUNK_BYTES):
            pass


def main(server: str, listen: str = "127.0.0.1") -> None:
    """Take commands until the input ends."""
    host, _, port = server.rpartition(":")
    with Proxy(host, int(port), listen=listen) as proxy:
        print(proxy.address, flush=True)
        for line in sys.stdin:
            command, *values = line.split()
            if command == "pass":
                proxy.pass_on()
            elif command == "delay":
                proxy.delay(float(values[0]))
            elif command == "sever":
                if not proxy.sever(values[0], int(values[1])):
                    print(f"not cut: nothing was sent {values[0]}", file=sys.stderr)
            else:
                {"hold": proxy.hold, "mute": proxy.mute}[command]()
            print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
