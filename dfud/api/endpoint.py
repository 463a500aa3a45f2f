"""What a transport plugin and the endpoint say to each other.

A transport knows bytes of its protocol and nothing of firmware. It hands over `Request`s and chunk names, and sends
what comes back. `quick()` and `quick_chunks()` never block and never touch the disk: try them first.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from enum import IntEnum

import msgspec
import trio


class Credentials(msgspec.Struct, frozen=True, gc=False):
    """What the peer showed. authorization: value of the Authorization header or its like, unparsed.

    certificate: DER of the TLS client certificate; chain: the rest of the chain the peer sent. The transport has
    verified that the peer holds the key; whether anybody trusts it is the endpoint's question.
    identity: `device@app`, proven by the transport's own security (PSK, OSCORE) with a key that the endpoint gave it.
    application, device: Drogue's query parameters of these names.
    """

    authorization: bytes = b""
    certificate: bytes = b""
    chain: tuple[bytes, ...] = ()
    identity: str = ""
    application: str = ""
    device: str = ""


class Request(msgspec.Struct, frozen=True, gc=False):
    """One publish. channel "dfu" is a status, "enrol" an enrolment, which comes without credentials.

    timeout_s: how long the device waits for a command (0: not at all). peer is the address without the port, for limits.
    encrypted: whether the channel is.
    """

    transport: str
    peer: str
    credentials: Credentials
    channel: str
    body: bytes
    content_type: str = ""
    timeout_s: float = 0.0
    as_device: str = ""
    data_schema: str = ""
    topic: str = ""
    encrypted: bool = False


class Code(IntEnum):
    """What became of a request, in HTTP's numbers; a transport translates them."""

    COMMAND = 200
    ACCEPTED = 202
    MALFORMED = 400
    DENIED = 403
    NOT_FOUND = 404
    NOT_ACCEPTABLE = 406
    TOO_LARGE = 413
    TOO_MANY = 429
    FAILED = 500
    AWAY = 503


class Reply(msgspec.Struct, frozen=True, gc=False):
    """command is set with COMMAND only; error and message with an error code only; retry_after_s 0: no hint.

    told: grows when dfud has decided anew, so that a transport that tells only what is new (observe) tells the same command
    again; 0: nothing to compare.
    """

    code: Code
    command: str = ""
    body: bytes = b""
    content_type: str = ""
    error: str = ""
    message: str = ""
    retry_after_s: int = 0
    told: int = 0


class Chunks(msgspec.Struct, frozen=True):
    """Encoded chunks first..first+len-1 of a package, to be sent one behind the other; never empty."""

    package: str
    first: int
    bodies: Sequence[bytes]


class Waiting(abc.ABC):
    """A request that is answered later: by `wake(reply)`, or by the transport when timeout_s has passed."""

    timeout_s: float

    @abc.abstractmethod
    def listen(self, wake: Callable[[Reply], None]) -> None:
        """Have `wake` called once, from the trio thread, perhaps at once within this call. It must not block."""

    @abc.abstractmethod
    def expire(self) -> Reply:
        """The time has passed: stop waiting and return what is to be sent."""

    @abc.abstractmethod
    def cancel(self) -> None:
        """The peer is gone: stop waiting. A command that came too late for it goes to the next waiter or is kept."""


class Shared(abc.ABC):
    """What the processes have in common that serve one transport on one store: small values by key, compared and set, and messages.

    secret: the same bytes in each of them. Every method may raise StoreError, and then has changed nothing.
    """

    secret: bytes

    @abc.abstractmethod
    def listen(self, heard: Callable[[bytes], None], missed: Callable[[], None]) -> None:
        """Have `heard` called with what other processes tell, and `missed` when some of that may have been lost. They must not block.
        Who listens later takes the place of who did before.
        """

    @abc.abstractmethod
    async def tell(self, body: bytes) -> None:
        """Have every other process hear `body`, at most once; up to 2 KB."""

    @abc.abstractmethod
    async def get(self, key: str) -> bytes | None: ...

    @abc.abstractmethod
    async def put(self, key: str, value: bytes | None, expect: bytes | None) -> bool:
        """Store a value, None: remove it, if what is stored is `expect` (None: nothing); return whether it was."""

    @abc.abstractmethod
    async def all(self, prefix: str, *, after: str = "", limit: int = 1000) -> list[tuple[str, bytes]]:
        """Return values by key, those behind `after` only."""

    @abc.abstractmethod
    def lead(self, name: str) -> AbstractAsyncContextManager[None]:
        """Wait until no other process is in the block `name`; it is cancelled, and ends without an error, when that is lost."""


class Endpoint(abc.ABC):
    """What a transport may ask of dfud."""

    @abc.abstractmethod
    def quick(self, request: Request) -> Reply | Waiting | None:
        """Answer from memory, or return None: then `await post()`."""

    def quick_again(self, request: Request) -> Callable[[], Reply | None] | None:
        """Return what answers a request that quick() has just answered with a reply, for a transport that recognises it when it comes
        again: the same reply if nothing has changed meanwhile, and None if quick() must be asked. It never blocks and never
        raises. None: ask quick() each time.
        """
        return None

    def soon(self, request: Request) -> Waiting | None:
        """Where quick() returned None: take the request without a task of the transport's, and return what its reply comes with.

        None: `await post()`. For transports that serve many devices without a task each; the reply comes in milliseconds, as a rule.
        """
        return None

    def is_full(self) -> bool:
        """Say whether what is not answered from memory is turned away now. A transport may have those wait a little who would cost
        it much before they can be told, as a new connection with a handshake does; not those who are there already."""
        return False

    @abc.abstractmethod
    async def post(self, request: Request) -> Reply | Waiting:
        """Take a publish; what it says is stored when this returns. Never raises but for cancellation."""

    @abc.abstractmethod
    def quick_chunks(
        self, peer: str, credentials: Credentials, package: str, first: int, last: int
    ) -> Chunks | Reply | None:
        """Answer from memory, or return None: then `await chunks()`."""

    @abc.abstractmethod
    async def chunks(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        """Return the chunks first..last (both included, maybe fewer), or an error reply. Never raises but for cancellation."""

    def chunk_again(self, credentials: Credentials, package: str) -> Callable[[int, float], bytes | None] | None:
        """Return what gives chunks of a package of which these credentials have just been given one, for a transport that sends a
        chunk in blocks, with a request for each. Called with the number of the chunk and trio's time it returns the chunk if it
        was given last and nothing has changed meanwhile, and None if it must be asked for anew; it never blocks and never
        raises. None: ask anew each time.
        """
        return None

    @abc.abstractmethod
    async def key_for(self, transport: str, identity: str) -> bytes | None:
        """Return the pre-shared key of `device@app` for a transport's own security, or None."""

    @abc.abstractmethod
    def key_for_cached(self, transport: str, identity: str) -> bytes | None:
        """As key_for, from memory only (for TLS callbacks that cannot wait)."""

    def shared(self, transport: str) -> Shared | None:
        """Return what a transport has in common with those of the other processes; None: dfud is alone on its store."""
        return None


class Transport(abc.ABC):
    """One way for devices to reach dfud."""

    name: str

    @abc.abstractmethod
    async def run(
        self, endpoint: Endpoint, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen, report started with the addresses as URLs (`http://127.0.0.1:8881`), serve until cancelled."""

    async def check(self) -> None:  # noqa: B027 - a transport that opens nothing has nothing to check
        """Raise ConfigError for what would keep run() from listening now, such as a port in use; for `check-config`."""

    @abc.abstractmethod
    async def drain(self) -> None:
        """Stop accepting; answer what is parked (the endpoint has woken it) and under way; return when no request is left."""

    def reload(self) -> None:  # noqa: B027 - a transport without anything to reload is whole
        """Read again what can change while running (certificates). Raises ConfigError and keeps the old on failure."""
