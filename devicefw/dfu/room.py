"""The decoder's buffers: 13 KB that stay from the start on. Once an application runs, its heap does not get whole again. Its code
needs no large pieces, so it is loaded when an update begins. Not kept in RAM."""

from array import array


def make():
    """Return tables (of LL, ML and OF, then literals), their symbols, those of Huffman weights, its state, counts, weights, a page."""
    return (
        array("H", bytes(2 * (1280 + 2048))),
        bytearray(1280 + 36 + 53),
        array("H", bytes(2 * 64)),
        bytearray(64),
        array("i", bytes(4 * 129)),
        array("H", bytes(2 * 128)),
        bytearray(256),
        bytearray(4096),
    )
