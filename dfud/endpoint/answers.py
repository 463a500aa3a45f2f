"""Answers to polls: how they are written, and what is remembered of them."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from dfud.api import Code, Reply
from dfud.wire.messages import Command, Type, encode_command

DFU = "dfu"  # the channel of statuses and commands


class Answered(msgspec.Struct):
    """The last status of a session and its answer, as long as nothing has happened that could change it.

    until_s: on the monotonic clock.
    """

    body: bytes
    reply: Reply
    until_s: float
    poll_s: int


@lru_cache(maxsize=1024)
def encoded(command: Command) -> bytes:
    """Write a command: many devices are told the same."""
    return encode_command(command)


@lru_cache(maxsize=4096)
def said_of(command: Command, poll_s: int) -> Reply:
    """Return the reply with a command that tells a device to come back in poll_s."""
    return Reply(Code.COMMAND, DFU, encoded(msgspec.structs.replace(command, poll_s=poll_s)))


def is_calm(command: Command) -> bool:
    """Say whether a command leaves a device nothing to do till its next poll, or till something changes."""
    return command.type is Type.SYNC or (command.type is Type.WAIT and command.poll_s >= 60)
