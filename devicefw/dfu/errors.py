"""What the agent raises of its own. Everything that comes from outside and is not what it should be ends as one of these."""

import gc
import sys

import dfu

# Codes of docs/protocol.md, result.
IMAGE_HASH, SIGNATURE, DOWNGRADE, HARDWARE, TOO_LARGE, CHUNK, BASE, FLASH, REFUSED, SELF_TEST, INTERNAL = range(3, 14)


class DfuError(Exception):
    """The base of all of them."""


class PackError(DfuError):
    """The bytes are not a message of the subset, or a field of it is not what it should be."""


class ZstdError(DfuError):
    """The frame is not what it should be."""


class UpdateError(DfuError):
    """The update cannot be done: args are the code for the result and a text."""


class TransportError(DfuError):
    """The server could not be reached, or did not answer as it should: worth another try later."""


class Denied(TransportError):
    """The credentials are not accepted."""


class Gone(TransportError):
    """The package is not there any more: ask again what to do."""


def forget(*names):
    """Give back the room of modules that are not needed for a while. They are imported anew when they are."""
    for name in names:
        if sys.modules.pop("dfu." + name, None) is not None:
            delattr(dfu, name)
            gc.collect()


def clear(*names):
    """The same, for modules of which nothing is alive, neither an object with methods nor a coroutine: they are emptied. What is left of
    a pointer to one of them on the stack would keep it whole, for the collector cannot tell it from a pointer that is in use."""
    for name in names:
        module = sys.modules.pop("dfu." + name, None)
        if module is not None:
            delattr(dfu, name)
            module.__dict__.clear()
            gc.collect()
