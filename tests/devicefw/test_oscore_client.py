"""The agent's OSCORE on real MicroPython: RFC 8613's vectors, aiocoap's OSCORE as the other side, and mutilated messages."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import aiocoap.oscore
from aiocoap import Message
from aiocoap.message import Direction

from devicefw.sim.compile import agent_modules
from tests.real_parts import require

CHECK = Path(__file__).with_name("oscorecheck.py")
SECRET, SALT = "0102030405060708090a0b0c0d0e0f10", "9e7ca92223786340"
KID_CONTEXT = "37cbf3210017a2d3"


def run(tmp_path: Path, cases: list[dict[str, Any]]) -> list[list[Any]]:
    path = tmp_path / "cases"
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    command = [require("micropython"), str(CHECK), str(agent_modules()), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-500:] + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def case(do: str, *, salt: str = SALT, id_context: str | None = None, sender: str = "", **more: Any) -> dict[str, Any]:
    recipient = more.pop("recipient", "01")
    return {"do": do, "secret": SECRET, "salt": salt, "id_context": id_context, "sender": sender, "recipient": recipient} | more


def test_the_keys_of_rfc_8613_appendix_c(tmp_path: Path) -> None:
    cases = [case("keys"), case("keys", salt="", sender="00"), case("keys", id_context=KID_CONTEXT)]
    assert run(tmp_path, cases) == [
        ["f0910ed7295e6ad4b54fc793154302ff", "ffb14e093c94c9cac9471648b4f98710", "4622d4dd6d944168eefb54987c"],
        ["321b26943253c7ffb6003b0b64d74041", "e57b5635815177cd679ab4bcec9d7dda", "be35ae297d2dace910c52e99f9"],
        ["af2a1300a5e95788b356336eeecd2b92", "e39a0c7c77b43f03b4b39ab9a268699f", "2ca58fb85ff1b81c0b7181b85e"],
    ]


def test_the_requests_of_rfc_8613_appendix_c(tmp_path: Path) -> None:
    plain = "01b3747631"  # GET /tv1
    cases = [
        case("protect", plain=plain, sequence=20),
        case("protect", salt="", sender="00", plain=plain, sequence=20),
        case("protect", id_context=KID_CONTEXT, plain=plain, sequence=20),
    ]
    assert run(tmp_path, cases) == [
        ["0914", "612f1092f1776f1c1668b3825e"],
        ["091400", "4ed339a5a379b0b8bc731fffb0"],
        ["19140837cbf3210017a2d3", "72cd7273fd331ac45cffbe55c3"],
    ]


def test_the_answers_of_rfc_8613_appendix_c(tmp_path: Path) -> None:
    head = "5d1f00003974"
    plain = "45ff" + b"Hello World!".hex()
    cases = [
        case("open", piv="14", message=f"6444{head}90ffdbaad1e9a7e7b2a813d3c31524378303cdafae119106"),
        case("open", piv="14", message=f"6444{head}920100ff4d4c13669384b67354b2b6175ff4b8658c666a6cf88e"),
        case("open", piv="15", message=f"6444{head}90ffdbaad1e9a7e7b2a813d3c31524378303cdafae119106"),
    ]
    answers = run(tmp_path, cases)
    assert answers[:2] == [[plain, None, b"Hello World!".hex()], [plain, 0, b"Hello World!".hex()]]
    assert answers[2] == ["refused", "oscore"], "an answer to another request"


class Server(aiocoap.oscore.CanProtect, aiocoap.oscore.CanUnprotect, aiocoap.oscore.SecurityContextUtils):
    """The server's end of a context, without aiocoap's files and event loop."""

    def __init__(self, secret: bytes, id_context: bytes) -> None:
        self.alg_aead = aiocoap.oscore.AES_CCM_16_64_128()
        self.hashfun = aiocoap.oscore.hashfunctions["sha256"]
        self.sender_id, self.recipient_id, self.id_context = b"\x00", b"\x01", id_context
        self.sender_sequence_number = 5
        self.echo_recovery = None
        self.derive_keys(b"", secret)
        self.recipient_replay_window = aiocoap.oscore.ReplayWindow(32, lambda: None)
        self.recipient_replay_window.initialize_empty()

    def post_seqnoincrease(self) -> None:
        pass


def decoded(data: bytes) -> Message:
    message = Message.decode(data)
    message.direction = Direction.INCOMING
    return message


def sizes() -> list[int]:
    return [0, 1, 7, 8, 15, 16, 17, 200, 239, 240, 241, 255, 256, 257, 1000, 1024]


def requests(id_context: bytes) -> list[dict[str, Any]]:
    """Requests of many sizes and sequence numbers."""
    random = Random(8)
    found = []
    for number, size in enumerate(sizes()):
        payload = random.randbytes(size)
        plain = b"\x02\xb3v1x" + (b"\xff" + payload if payload else b"")
        sequence = [0, 255, 256, 65535, 1 << 24, (1 << 40) - 1][number % 6] if number else 0
        common = {"salt": "", "sender": "01", "recipient": "00", "id_context": id_context.hex()}
        found.append(case("protect", plain=plain.hex(), sequence=sequence, **common))
    return found


def test_aiocoap_opens_what_we_protect_and_we_open_what_it_answers(tmp_path: Path) -> None:
    id_context = bytes(range(8)) + b"lamp1@lamps"
    asked = requests(id_context)
    answers: list[dict[str, Any]] = []
    expected: list[list[Any]] = []
    for one, (option, protected) in zip(asked, run(tmp_path, asked), strict=True):
        outer = Message(code=aiocoap.POST, payload=bytes.fromhex(protected), oscore=bytes.fromhex(option))
        outer.mtype, outer.mid, outer.token = aiocoap.CON, 1, b"tk"
        server = Server(bytes.fromhex(SECRET), id_context)
        inner, request_id = server.unprotect(decoded(outer.encode()))
        assert inner.opt.uri_path == ("v1x",)
        plain = bytes.fromhex(one["plain"])
        assert inner.payload == plain[6:]
        for own in (False, True):
            # With a second answer to one request the server must use a Partial IV of its own.
            request_id.can_reuse_nonce = not own
            payload = inner.payload[::-1]
            answer, _ = server.protect(Message(code=aiocoap.CONTENT, payload=payload, etag=b"\x01\x02"), request_id)
            answer.mtype, answer.mid, answer.token = aiocoap.ACK, 1, b"tk"
            piv = one["sequence"].to_bytes(5, "big").lstrip(b"\0") or b"\0"
            fields = {k: one[k] for k in ("salt", "sender", "recipient", "id_context")}
            answers.append(case("open", piv=piv.hex(), message=answer.encode().hex(), **fields))
            text = b"\x45\x42\x01\x02" + (b"\xff" + payload if payload else b"")
            expected.append([text.hex(), 5 if own else None, payload.hex()])
    assert run(tmp_path, answers) == expected
    mutilated(tmp_path, answers, expected)


def mutilated(tmp_path: Path, answers: list[dict[str, Any]], expected: list[list[Any]]) -> None:
    """Of an answer with any byte changed nothing is believed that the server did not say."""
    seed = 21
    random = Random(seed)
    cases, right = [], []
    for _ in range(1500):
        at = random.randrange(len(answers))
        message = bytearray.fromhex(answers[at]["message"])
        for _ in range(random.choice((1, 1, 2, 9))):
            message[random.randrange(min(len(message), random.choice((16, 2000))))] = random.randrange(256)
        if random.random() < 0.2:
            del message[random.randrange(len(message)) :]
        cases.append(answers[at] | {"message": message.hex()})
        right.append(expected[at])
    refused = 0
    for number, (answer, good) in enumerate(zip(run(tmp_path, cases), right, strict=True)):
        assert answer == good or answer[0] in ("refused", "plain"), f"seed {seed} case {number}: {cases[number]} {answer}"
        refused += answer != good
    assert refused > 1000
