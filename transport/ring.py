"""Tensors between two processes of one host at memory speed: a ring of equal slots in memory both have mapped.

Owns the memory (an anonymous memfd) and who may touch which slot when. The number of a filled slot travels as a message over a
link; here only releases travel back. Set-up, in this order and without waiting: the reader listens on a Unix socket; the writer
makes the memory, connects, and passes the descriptor; then it may send slot numbers. By the time the reader sees the first of them,
connection and descriptor are in its socket's queue, so it accepts without waiting, too.

A slot belongs to the writer from `acquire` until its number is sent, then to the reader until `release`. Memory order: both
hand-overs are messages through the kernel, sent after the last and received before the first access to the slot, so no access to
the memory itself needs ordering, on any CPU. There are no flags in shared memory.

Nothing outlives the two processes: the memory has no name and dies with its last mapping, the socket file is removed at the first
accept. The end of the connection tells each side, at once, that the other is gone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from .address import IpcAddress, parse_address
from .interface import Buffer, FrameError, LinkClosedError, PeerLostError
from .unix_socket import listen_unix, new_unix_socket

SLOTS_MAX = 128
"""As many releases may lie unread in the Unix socket, whose default buffer (208 KiB) takes more than 200 small ones."""
SLOT_BYTES_MAX = 1 << 32
SLOT_ALIGNMENT_BYTES = 4096

_OFFER = struct.Struct("<4sIQ")
_OFFER_MAGIC = b"FPR1"
_RELEASE = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class RingWriter:
    """The filling end. One per ring; close it, or use it as a context manager."""

    def __init__(self, connection: socket.socket, memory: mmap.mmap, slots: int, slot_bytes: int) -> None:
        self._connection = connection
        self._memory = memory
        self._view = memoryview(memory)
        self._slot_bytes = slot_bytes
        self._stride = _stride(slot_bytes)
        self._free = list(reversed(range(slots)))
        self._taken: set[int] = set()
        self._released = trio.lowlevel.ParkingLot()
        self._leader: trio.CancelScope | None = None
        self._closed = False

    @classmethod
    def connect(cls, path: str, *, slots: int, slot_bytes: int) -> Self:
        """Make the memory (``slots`` times ``slot_bytes``, touched) and offer it to the reader that listens at ``path``.

        Raises `PeerLostError` where nobody listens there.
        """
        if not (0 < slots <= SLOTS_MAX and 0 < slot_bytes <= SLOT_BYTES_MAX):
            raise ValueError(
                f"a ring has 1..{SLOTS_MAX} slots of 1..{SLOT_BYTES_MAX} bytes, not {slots} of {slot_bytes}"
            )
        connection = new_unix_socket(socket.SOCK_SEQPACKET)
        try:
            connection.connect(path)
            descriptor = os.memfd_create("flexpipe-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(descriptor, slots * _stride(slot_bytes))
                # The reader maps it: shrinking it later would kill the reader with SIGBUS.
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
                memory = _map(descriptor)
                socket.send_fds(connection, [_OFFER.pack(_OFFER_MAGIC, slots, slot_bytes)], [descriptor])
            finally:
                os.close(descriptor)
        except OSError as error:
            connection.close()
            raise PeerLostError(f"no ring reader takes offers at {path}: {error.strerror}") from error
        return cls(connection, memory, slots, slot_bytes)

    @property
    def slot_bytes(self) -> int:
        """What one slot holds; larger tensors go over the link."""
        return self._slot_bytes

    async def acquire(self) -> int:
        """A free slot, which is the caller's until its number was sent or it was given back. Waits for a release.

        Raises `PeerLostError` where the reader is gone, `LinkClosedError` after `close`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        self._take_releases()
        while not self._free:
            await self._wait_for_release()
            waited = True
            self._take_releases()
        slot = self._free.pop()
        self._taken.add(slot)
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return slot

    def write(self, slot: int, data: Buffer) -> int:
        """Copy ``data`` to the start of an acquired slot; returns its bytes. Raises `FrameError` where it does not fit."""
        source = memoryview(data).cast("B")
        if len(source) > self._slot_bytes:
            raise FrameError(
                f"{len(source)} bytes do not fit a ring slot of {self._slot_bytes}: send them over the link"
            )
        self.view(slot)[: len(source)] = source
        return len(source)

    def view(self, slot: int) -> memoryview:
        """An acquired slot's memory, to be filled in place."""
        assert slot in self._taken, "only an acquired slot may be written"
        start = slot * self._stride
        return self._view[start : start + self._slot_bytes]

    def give_back(self, slot: int) -> None:
        """Return an acquired slot whose number was not sent (the send was cancelled or failed)."""
        self._taken.remove(slot)
        self._free.append(slot)
        self._released.unpark_all()
        if self._leader is not None:
            self._leader.cancel()

    def close(self) -> None:
        """Give the memory up; the reader keeps what it has mapped. Idempotent; to be called inside trio."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._connection)
            self._connection.close()
            self._released.unpark_all()
            _unmap(self._view, self._memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_releases(self) -> None:
        """Read every release that has come."""
        while not self._closed:
            try:
                message = self._connection.recv(_RELEASE.size + 1)
            except BlockingIOError:
                return
            except OSError as error:
                raise PeerLostError(f"the ring's reader is gone: {error.strerror}") from error
            if not message:
                raise PeerLostError("the ring's reader closed or died")
            self._release(message)
        raise LinkClosedError("the ring was closed by this end")

    def _release(self, message: bytes) -> None:
        if len(message) != _RELEASE.size:
            raise FrameError(f"a ring release has {_RELEASE.size} bytes, {len(message)} came")
        (slot,) = _RELEASE.unpack(message)
        if slot not in self._taken:
            raise FrameError(f"the ring's reader released slot {slot}, which it did not have")
        self._taken.remove(slot)
        self._free.append(slot)

    async def _wait_for_release(self) -> None:
        if self._leader is not None:
            await self._released.park()
            return
        with trio.CancelScope() as scope:
            self._leader = scope
            try:
                await trio.lowlevel.wait_readable(self._connection)
            except trio.ClosedResourceError:
                pass  # `_take_releases` says so in our words
            finally:
                self._leader = None
                self._released.unpark_all()


class RingReader:
    """The emptying end: listens at ``path`` until the writer has come. Close it, or use it as a context manager."""

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self._listener: socket.socket | None = listener
        self._path = path
        self._connection: socket.socket | None = None
        self._memory: mmap.mmap | None = None
        self._view = memoryview(b"")
        self._slots = 0
        self._slot_bytes = 0
        self._held: set[int] = set()

    @classmethod
    def listen(cls, path: str) -> Self:
        """Be ready for a writer. Do it before anyone may call `RingWriter.connect`. Raises `AddressError`."""
        address = parse_address(f"ipc://{path}")
        assert isinstance(address, IpcAddress)
        return cls(listen_unix(address, socket.SOCK_SEQPACKET), Path(path))

    def view(self, slot: int, size: int) -> memoryview:
        """The first ``size`` bytes of a slot whose number came over the link, in place; not to be touched after `release`.

        Raises `FrameError` where there is no such slot, or no writer has offered a ring, or what it offered is not one.
        """
        if self._memory is None:
            self._accept()
        if not (0 <= slot < self._slots and 0 <= size <= self._slot_bytes):
            raise FrameError(
                f"slot {slot} with {size} bytes does not exist: the ring has {self._slots} slots of {self._slot_bytes} bytes"
            )
        self._held.add(slot)
        start = slot * _stride(self._slot_bytes)
        return self._view[start : start + size]

    def release(self, slot: int) -> None:
        """Give a viewed slot back to the writer. A writer that is gone does not mind."""
        assert slot in self._held, "only a slot that was viewed may be released, and once"
        assert self._connection is not None
        self._held.remove(slot)
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(_RELEASE.pack(slot))

    def close(self) -> None:
        """Release everything; views still in use keep the memory until they go. Idempotent."""
        self._stop_listening()
        if self._connection is not None:
            self._connection.close()
        if self._memory is not None:
            _unmap(self._view, self._memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        if self._listener is None:
            raise LinkClosedError("the ring was closed by this end")
        try:
            self._connection, _ = self._listener.accept()
        except BlockingIOError as error:
            raise FrameError("a slot number came, yet no writer has offered a ring") from error
        self._stop_listening()
        self._connection.setblocking(False)
        try:
            data, descriptors, _, _ = socket.recv_fds(self._connection, _OFFER.size + 1, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise FrameError(f"a ring writer connected and offered nothing: {error.strerror}") from error
        try:
            self._slots, self._slot_bytes = _check_offer(self._connection, data, descriptors)
            self._memory = _map(descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._view = memoryview(self._memory)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)


def _check_offer(connection: socket.socket, data: bytes, descriptors: list[int]) -> tuple[int, int]:
    """Number and size of the slots in an offer. Believes nothing: mapping a file that can shrink would be fatal."""
    if len(data) != _OFFER.size or len(descriptors) != 1:
        raise FrameError("what the ring's writer sent is not an offer of memory")
    magic, slots, slot_bytes = _OFFER.unpack(data)
    if magic != _OFFER_MAGIC or not (0 < slots <= SLOTS_MAX and 0 < slot_bytes <= SLOT_BYTES_MAX):
        raise FrameError(f"the ring's writer offers an impossible ring: {slots} slots of {slot_bytes} bytes")
    _pid, user, _group = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    if user != os.geteuid():
        raise FrameError(f"the ring's writer runs as user {user}, this process as {os.geteuid()}: run both as one user")
    try:
        seals = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS)
    except OSError as error:
        raise FrameError("the ring's writer offers something that is not sealed memory") from error
    if seals & _SEALS != _SEALS or os.fstat(descriptors[0]).st_size != slots * _stride(slot_bytes):
        raise FrameError("the memory that the ring's writer offers can still shrink, or has the wrong size")
    return slots, slot_bytes


def _stride(slot_bytes: int) -> int:
    return slot_bytes + -slot_bytes % SLOT_ALIGNMENT_BYTES


def _map(descriptor: int) -> mmap.mmap:
    """All of it, shared, every page touched now: a fault on first use costs more than the copy (3 GB/s instead of 9)."""
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _unmap(view: memoryview, memory: mmap.mmap) -> None:
    view.release()
    # Somebody still reads a slot: the mapping goes with the last view.
    with suppress(BufferError):
        memory.close()
