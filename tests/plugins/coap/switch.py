"""A load balancer of datagrams that keeps nobody where it was: it goes over to the next process as often as a test says."""

from __future__ import annotations

import trio

SIZE = 2000


class Switch:
    """every: datagrams of one client to one process before the next ones go to another; 0: all go to `at`. passed: to each."""

    def __init__(self, ports: list[int], every: int = 0) -> None:
        self._ports = ports
        self.every = every
        self.at = 0
        self.port = 0
        self.passed = [0] * len(ports)
        self._number = 0

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        front = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        behind: dict[tuple[str, int, int], trio.socket.SocketType] = {}
        try:
            await front.bind(("127.0.0.1", 0))
            self.port = front.getsockname()[1]
            async with trio.open_nursery() as nursery:
                task_status.started(self.port)
                while True:
                    data, client = await front.recvfrom(SIZE)
                    if self.every:
                        self._number += 1
                        self.at = self._number // self.every % len(self._ports)
                    key = (*client, self.at)
                    if key not in behind:
                        behind[key] = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
                        await behind[key].connect(("127.0.0.1", self._ports[self.at]))
                        nursery.start_soon(self._back, behind[key], front, client)
                    self.passed[self.at] += 1
                    await self._send(behind[key], data)
        finally:
            front.close()
            for sock in behind.values():
                sock.close()

    async def _send(self, sock: trio.socket.SocketType, data: bytes) -> None:
        try:
            await sock.send(data)
        except OSError:
            return  # that process is dead; the client repeats itself

    async def _back(self, sock: trio.socket.SocketType, front: trio.socket.SocketType, client: tuple[str, int]) -> None:
        while True:
            try:
                data = await sock.recv(SIZE)
            except OSError:
                await trio.sleep(0.05)  # nobody listens there now
                continue
            await front.sendto(data, client)
