"""A TCP proxy that does to a connection what networks do: delays, throttles, stalls, cuts and corrupts it.

It stands on the port that a listener of tests.kafka_broker.KafkaBroker tells its clients (`proxied`, `secure_proxied`),
so that every connection of a client goes through it. What it does to the broker's answers is set by its attributes and
holds for open connections, too; what the client says passes as it is. Two threads per connection; nothing is parsed.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time


class ChaosProxy:
    """Passes `port` of 127.0.0.1 on to `target`; a context manager.

    delay_seconds    : each piece of an answer comes that much later
    bytes_per_second : no more of the answers than that, per connection; 0 is no limit
    refuse           : new connections are closed at once, as by a load balancer without a backend
    flip             : a text whose first occurrence in an answer gets one bit wrong; cleared when that is done
    accepted         : connections that were accepted, also those that were closed at once
    flipped, was_cut : what was done on the way
    """

    def __init__(self, port: int, target: int) -> None:
        self.delay_seconds, self.bytes_per_second, self.refuse, self.flip = 0.0, 0, False, b""
        self.accepted, self.flipped, self.was_cut = 0, 0, threading.Event()
        self._cut_after: int | None = None
        self._flowing = threading.Event()
        self._flowing.set()
        self._target = target
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", port))
        self._is_open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> ChaosProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        with contextlib.suppress(OSError):          # wakes the thread that waits in accept
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._flowing.set()
        self.cut()

    def stall(self) -> None:
        """Pass no more answers on, with all connections left open: a broker that hangs, a firewall that forgot."""
        self._flowing.clear()

    def flow(self) -> None:
        """Pass answers on again."""
        self._flowing.set()

    def cut(self) -> None:
        """Reset every connection now."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for one in [end for pair in pairs for end in pair]:
            _reset(one)

    def cut_after(self, size: int) -> None:
        """Reset the connection whose answer passes the next `size` bytes, in the middle of it."""
        self.was_cut.clear()
        self._cut_after = size

    def _accept(self) -> None:
        while self._is_open:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                if self.refuse:
                    raise OSError
                broker = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            pair = (client, broker)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._pass, args=(client, broker, pair), daemon=True).start()
            threading.Thread(target=self._pass_answers, args=(broker, client, pair), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65_536):
                sink.sendall(piece)
        self._end(pair)

    def _pass_answers(self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(min(65_536, self.bytes_per_second // 20 or 65_536)):
                self._flowing.wait()
                if wait := self.delay_seconds + (len(piece) / self.bytes_per_second if self.bytes_per_second else 0.0):
                    time.sleep(wait)
                if self.flip and (at := piece.find(self.flip)) >= 0:
                    piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1:]
                    self.flip, self.flipped = b"", self.flipped + 1
                if self._cut_after is not None and (left := self._cut_after) <= len(piece):
                    self._cut_after = None
                    sink.sendall(piece[:left])
                    self.was_cut.set()
                    break
                if self._cut_after is not None:
                    self._cut_after -= len(piece)
                sink.sendall(piece)
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for one in pair:
            _reset(one)


def _reset(one: socket.socket) -> None:
    """Close with RST, so that nothing that is under way arrives; wakes whoever reads from it."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RDWR)
    one.close()
