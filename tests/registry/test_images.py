"""What the registry takes for an image and for a hardware's name, and how large an image may be."""

from __future__ import annotations

import base64
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootloader.sim.images import image
from devicefw.sim.firmware import build
from dfud.wire.manifest import FLAG_RAW, Manifest, sign
from tests.model.test_oddfile import APP, block_v2, merged
from tests.registry.test_api import APPS, DFU, Api, api

__all__ = ["api"]
KEY = Ed25519PrivateKey.generate()
PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
LARGEST = 1_765_376


def of_size(size: int) -> bytes:
    """Return a whole application image of that many bytes."""
    smallest = len(build("", "1.0", code=bytes(16)))
    made = build("", "1.0", code=bytes(size - smallest + 16))
    assert len(made) == size
    return made


def signed(data: bytes, hardware: str, flags: int = 0) -> dict[str, str]:
    manifest = Manifest(
        app="a",
        version="1.0",
        hardware=hardware,
        sequence=1,
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        flags=flags,
    )
    return {"dfud-manifest": base64.b64encode(sign(manifest, KEY)).decode()}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (image("stage2"), "no application description (abcd5432) at offset 32: this is a second-stage bootloader"),
        (merged(), "dd if=FILE of=app.bin bs=16 skip=4096"),
        (merged() + b"\xff" * 0x200000, "--app-at 0x10000"),
        (APP + b"\xff" * 100, "100 bytes of padding (ff) follow"),
        (APP + b"\xff" * (-len(APP) % 4096) + block_v2(), "secure boot signature block (version 2)"),
        (APP[:-5], "ends within its SHA-256"),
        (b"\x7fELF" + bytes(100), "esptool --chip CHIP elf2image"),
        (b":020000040000FA\n", "objcopy -I ihex"),
        (b"UF2\n" + struct.pack("<I", 0x9E5D5157) + bytes(504), "uf2conv.py"),
    ],
    ids=["bootloader", "merged", "merged-large", "padded", "secure-boot", "cut", "elf", "hex", "uf2"],
)
async def test_an_odd_image_is_named_and_taken_as_raw_alone(api: Api, data: bytes, message: str) -> None:
    await api.app(layout={"imageMaxBytes": {"esp32c3": 4 << 20}})
    assert message in (await api.publish(400, data))["message"]
    assert await api.ask(200, "GET", f"{DFU}/firmware") == []
    assert (await api.publish(201, data, kind="raw"))["kind"] == "raw"


async def test_a_chip_is_stored_in_one_spelling(api: Api) -> None:
    await api.app()
    for number, spelled in enumerate(("esp32-c3", "ESP32C3", "ESP32-C3", "esp32c3")):
        assert (await api.publish(version=f"1.{number}", hardware=spelled))["hardware"] == "esp32c3"
    assert (await api.publish(version="2.0", hardware="ESP32-C3-lamp"))["hardware"] == "esp32c3-lamp"
    assert (await api.publish(version="1.0", hardware="Esp32-C3"))["sequence"] == 1, "the one that is there"
    raw = await api.publish(version="3.0", hardware="ESP32-S3", kind="raw", image=b"any")
    assert raw["hardware"] == "esp32s3"
    assert (await api.publish(version="3.1", hardware="Toaster", kind="raw", image=b"any"))["hardware"] == "Toaster"


async def test_a_signed_name_that_no_device_has_is_refused(api: Api) -> None:
    await api.app(signing={"keys": [PUBLIC]})
    for spelled in ("esp32-c3", "ESP32C3"):
        told = await api.publish(400, hardware="", headers=signed(APP, spelled), image=APP)
        assert f"the manifest is for hardware '{spelled}', expected 'esp32c3'" in told["message"]
    told = await api.publish(400, hardware="ESP32-S3", headers=signed(APP, "esp32c3"), image=APP)
    assert "hardware 'esp32s3' was given, the manifest says 'esp32c3'" in told["message"]
    assert (await api.publish(hardware="ESP32-C3", headers=signed(APP, "esp32c3"), image=APP))["hardware"] == "esp32c3"
    await api.ask(204, "DELETE", f"{DFU}/firmware/1.0")
    # What a raw firmware's devices call themselves is its publisher's affair.
    raw = await api.publish(hardware="ESP32C3", headers=signed(APP, "ESP32C3", FLAG_RAW), image=APP)
    assert (raw["kind"], raw["hardware"]) == ("raw", "ESP32C3")


async def test_an_image_that_no_slot_holds_is_refused_unless_the_app_has_another_layout(api: Api) -> None:
    await api.app()
    assert (await api.publish(version="1.0", image=of_size(LARGEST)))["size"] == LARGEST
    large = of_size(LARGEST + 16)
    for kind in ("esp-image", "raw"):
        told = (await api.publish(409, large, version="1.1", kind=kind))["message"]
        assert f"has {LARGEST + 16} bytes, expected at most {LARGEST} for esp32c3" in told
        assert "spec.layout.imageMaxBytes" in told
    assert [f["version"] for f in await api.ask(200, "GET", f"{DFU}/firmware")] == ["1.0"]
    found = await api.ask(200, "GET", f"{APPS}/a")
    found["spec"]["layout"] = {"imageMaxBytes": {"esp32c3": "2M"}}
    assert "spec.layout.imageMaxBytes['esp32c3']" in (await api.ask(400, "PUT", f"{APPS}/a", json=found))["message"]
    found["spec"]["layout"] = {"imageMaxBytes": {"ESP32-C3": LARGEST + 16}}
    await api.ask(204, "PUT", f"{APPS}/a", json=found)
    assert (await api.publish(version="1.1", image=large))["size"] == LARGEST + 16
    assert "(spec.layout.imageMaxBytes of the app)" in (await api.publish(409, of_size(LARGEST + 32), version="1.2"))["message"]
