# Runs on MicroPython: mutilated datagrams for the agent's CoAP client. Nothing but what it promises may come out; prints counts.
import os
import random
import sys

sys.path.insert(0, sys.argv[1])
from dfu.coap import CoapTransport, put, read, write

SEED, ROUNDS = int(sys.argv[2]), int(sys.argv[3])
random.seed(SEED)


class Sock:
    def __init__(self):
        self.sent = 0

    def send(self, message):
        assert len(message) == 4, "only empty messages answer what was not asked for"
        self.sent += 1


def datagram(token, mid):
    """A plausible answer: any kind, most codes, options as answers have them."""
    options = []
    for _ in range(random.randrange(6)):
        number = random.choice((4, 6, 9, 12, 14, 23, 27, 28, 252, 4210, random.getrandbits(11)))
        put(options, number, os.urandom(random.choice((0, 1, 2, 3, 8, 13, 20))))
    kind, code = random.randrange(4), random.choice((0, 0x44, 0x45, 0x45, 0x81, 0x84, 0xA3, 1, 0xE0, random.getrandbits(8)))
    out = bytearray([0x40 | kind << 4 | len(token), code, mid >> 8, mid & 0xFF]) + token
    write(out, options)
    if random.getrandbits(1):
        out.append(0xFF)
        out.extend(os.urandom(random.choice((1, 9, 60))))
    return out


def change(data):
    for _ in range(random.choice((0, 1, 1, 2, 8))):
        data[random.randrange(min(len(data), random.choice((8, 1000))))] = random.getrandbits(8)
    if random.getrandbits(3) == 0:
        data = data[: random.randrange(len(data) + 1)]
    return data


for psk in (None, "00" * 16):
    t = CoapTransport({"url": "coap://x", "device": "d", "app": "a", "secret": "s", "psk": psk})
    t.sock = Sock()
    said = {0: 0, 1: 0, 2: 0, 3: 0}
    for _ in range(ROUNDS):
        t.token, t.code = os.urandom(4), 0
        t._message(2, [(11, b"v1")], b"x")
        token = t.token if random.getrandbits(2) else os.urandom(random.randrange(9))
        data = change(datagram(token, t.mid if random.getrandbits(1) else random.getrandbits(16)))
        t.room = memoryview(bytearray(data) + bytearray(8))
        before = t.sock.sent
        what = t._heard(len(data), random.getrandbits(2) == 0)
        said[what] += 1
        assert t.sock.sent - before <= 1
        if what == 1:
            assert 0 <= t.start <= t.end <= len(data) and t.code >> 5 in (2, 4, 5), t.code
            assert psk is None or t.code >> 5 != 2, "believed without a key"
    print("oscore" if psk else "plain", said[1] > ROUNDS // 40, said[0] > ROUNDS // 4, t.sock.sent > ROUNDS // 20)
for _ in range(ROUNDS):
    data = bytearray(os.urandom(random.randrange(40)))
    try:
        options, at = read(data, 0, len(data))
        assert at <= len(data)
        out = bytearray()
        write(out, options)
        assert read(out, 0, len(out))[0] == options
    except (ValueError, IndexError):
        pass
print("done")
