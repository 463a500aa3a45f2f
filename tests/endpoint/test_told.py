"""What an observing transport compares: an update that history has twice is told twice, one that it has once is told once."""

from __future__ import annotations

import hashlib

import trio

from dfud.api import (
    App,
    AppChanged,
    CancelRequested,
    Credentials,
    Firmware,
    Metadata,
    PutApp,
    PutFirmware,
    Reply,
    RetryRequested,
)
from dfud.testing.store import a_blob
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import Status, Type, decode_command_untrusted, encode_status
from tests.endpoint.world import World, basic

OLD, NEW = b"old" * 3000, bytes(range(256)) * 60


async def test_a_cancelled_and_repeated_wish_is_told_as_often_as_history_says(world: World) -> None:
    spec = {"firmware": {"version": "1.1"}, "signing": {"mode": "optional"}}
    app = await world.store.app("app1")
    assert app is not None
    await world.store.commit([PutApp(App(Metadata("app1"), spec), app.metadata.resource_version)])
    for version, image in (("1.0", OLD), ("1.1", NEW)):
        async with a_blob(world.store, image) as sha256:
            manifest = unsigned(Manifest("app1", version, "esp32c3", 1, len(image), bytes.fromhex(sha256)))
            firmware = Firmware(
                app="app1",
                version=version,
                hardware="esp32c3",
                sequence=1,
                size_bytes=len(image),
                sha256=sha256,
                manifest=manifest,
                kind="raw",
            )
            await world.store.commit([PutFirmware(firmware)])
    world.bus.publish(AppChanged("app1"))
    body = encode_status(Status("1.0", hashlib.sha256(OLD).digest(), "esp32c3", 2, 16384, 1 << 20))

    async def status(wanted: Type) -> Reply:
        """Post it until it is answered like this: packages are made, and users' wishes done, beside it."""
        with trio.fail_after(60):
            while True:
                reply = await world.post(Credentials(basic("dev1@app1:pw")), channel="dfu", body=body)
                assert isinstance(reply, Reply)
                if reply.body and decode_command_untrusted(reply.body).type is wanted:
                    return reply
                await trio.sleep(0.01)

    first = await status(Type.UPDATE)
    assert first.told and (await status(Type.UPDATE)).told == first.told
    world.bus.publish(CancelRequested("app1", "dev1", "eve"))
    await status(Type.WAIT)
    world.bus.publish(RetryRequested("app1", "dev1", "eve"))
    again = await status(Type.UPDATE)
    assert again.body == first.body and again.told > first.told
    entries = await world.store.history("app1", "dev1", limit=50)
    assert [e.event for e in entries].count("sent") == 2
