"""One update: judge its manifest, fetch its chunks into the idle slot, verify the whole. Resumes where it was cut."""

import asyncio
import gc
import hashlib
import sys

from dfu import flash
from dfu.pack import PackError, chunk_head, unpack
from dfu.zstd import PAGE, Decoder, ZstdError

# Codes of docs/protocol.md.
IMAGE_HASH, SIGNATURE, DOWNGRADE, HARDWARE, TOO_LARGE, CHUNK, BASE, FLASH, REFUSED, SELF_TEST, INTERNAL = range(3, 14)
CONTEXT = b"dfud manifest 1\0"
ALLOW_DOWNGRADE = 1
FULL, DELTA, MAPPED = 1, 2, 3
CHUNK_TRIES = 3


class UpdateError(Exception):
    """The update cannot be done: args are the code for the result and a text."""


class Manifest:
    """A manifest out of its envelope; raises UpdateError if it is none."""

    def __init__(self, envelope):
        try:
            self.signed, self.key, self.signature = unpack(envelope)
            m = unpack(self.signed)
            self.app, self.version, self.hardware, self.sequence = m[1], m[2], m[3], m[4]
            self.size, self.sha256, self.flags, self.floor = m[5], m[6], m[7], m.get(8, 0)
        except (PackError, ValueError, KeyError, TypeError):
            raise UpdateError(SIGNATURE, "the manifest cannot be read")
        if m.get(0) != 1 or len(self.sha256) != 32 or not isinstance(self.size, int):
            raise UpdateError(SIGNATURE, "the manifest is not of format 1")

    def judge(self, keys, app, hardware, accept, capacity):
        """Raise UpdateError unless this device may install it. keys: [] on an open device, None: nobody is trusted."""
        if keys is None:
            raise UpdateError(SIGNATURE, "the key log cannot be read")
        if keys:
            known = [key for key in keys if hashlib.sha256(key).digest()[:8] == self.key]
            if not known or not _verify(known[0], CONTEXT + self.signed, self.signature):
                raise UpdateError(SIGNATURE, "no trusted key signed the manifest")
        if self.app != app:
            raise UpdateError(SIGNATURE, "the manifest is for app " + self.app)
        if self.hardware != hardware:
            raise UpdateError(HARDWARE, "the manifest is for " + self.hardware)
        if self.sequence < accept and not self.flags & ALLOW_DOWNGRADE:
            raise UpdateError(DOWNGRADE, "sequence %d, at least %d is accepted" % (self.sequence, accept))
        if self.size > capacity:
            raise UpdateError(TOO_LARGE, "%d bytes, the slot holds %d" % (self.size, capacity))


def _verify(key, message, signature):
    """Verify, and give the room back: the module is needed once an update."""
    gc.collect()
    import dfu.ed25519

    try:
        return dfu.ed25519.verify(key, message, signature)
    finally:
        del dfu.ed25519
        sys.modules.pop("dfu.ed25519", None)
        gc.collect()


class _Prefix:
    """The running image (or nothing) with the image being written behind it, from its byte `first` on."""

    def __init__(self, base, base_size, image, first):
        self.base, self.base_size, self.image, self.first = base, base_size, image, first

    def read(self, position, buffer, offset, length):
        view = memoryview(buffer)
        if position < self.base_size:
            n = min(length, self.base_size - position)
            self.base.readblocks(position // 4096, view[offset : offset + n], position % 4096)
            position += n
            offset += n
            length -= n
        if length:
            at = position - self.base_size + self.first
            self.image.readblocks(at // 4096, view[offset : offset + length], at % 4096)


class Update:
    """`command` is the decoded update command, `raw` its bytes, `slots` a dfu.agent.Slots, `buffer` the transport's."""

    def __init__(self, command, raw, slots, config, buffer):
        self.raw = raw
        self.package, self.kind = command[4], command[5]
        self.size, self.chunks, self.base = command[6], command[7], command.get(9)
        self.envelope = command[3]
        self.manifest = Manifest(self.envelope)
        self.slots, self.config, self.buffer = slots, config, buffer
        self.resume = flash.Resume(slots.stage)
        self.next = 0
        self.written = False
        self.stage = None
        self.mapped = None
        if config.get("install") == "bootloader":
            from dfu import stage

            if stage.fits(slots.stage, command.get(8, 0), self.chunks, self.kind):
                self.stage = stage.Stage(slots.stage, self.package)

    def begin(self):
        """Judge the update and prepare the idle slot, or find out how far an interrupted transfer came."""
        slots, m = self.slots, self.manifest
        m.judge(slots.keys(), self.config["app"], self.config["hardware"], slots.state.accept, slots.capacity)
        if m.size != self.size or not 0 < self.chunks <= 1 << 20:
            raise UpdateError(SIGNATURE, "the manifest has another size than the package")
        if self.kind not in (FULL, DELTA, MAPPED):
            raise UpdateError(BASE, "package kind %d" % self.kind)
        if self.kind != FULL and self.base != slots.digest:
            raise UpdateError(BASE, "the package starts from another image")
        found = self.resume.load()
        if found is not None and found[0] == self.raw:
            self.next = found[1]
            if self.stage is not None:
                self.stage.skip(self.next)
            if self.next >= self.chunks:
                self._finish()
            return
        self.resume.forget()
        if self.stage is not None:
            self.resume.begin(self.raw)
            return
        trailer = slots.size // flash.SECTOR - 1
        if not flash.blank(slots.idle, trailer * flash.SECTOR, flash.SECTOR):
            flash.erase(slots.idle, trailer)
        self.resume.begin(self.raw)

    def progress(self):
        return {0: self.package, 1: self.next, 2: 1 if self.written else 0}

    async def fetch(self, transport):
        """Fetch and store the next chunk; after the last one verify the image. Raises UpdateError, TransportError."""
        if self.kind == MAPPED and self.stage is None and self.next and self.mapped is None:
            # After a reset: the table was in RAM. Its pages stand in flash, and stay.
            await self._fetch_one(transport, 0)
        await self._fetch_one(transport, self.next)
        self.resume.mark(self.next)
        self.next += 1
        if self.next == self.chunks:
            if hasattr(transport, "rest"):
                transport.rest()
            self._finish()

    async def _fetch_one(self, transport, number):
        last = ""
        for _ in range(CHUNK_TRIES):
            length = await transport.chunk(self.package, number, self.buffer)
            try:
                if self.stage is not None:
                    self.stage.add(self.buffer, length, number)
                else:
                    await self._store(length, number)
                return
            except (PackError, ZstdError) as error:
                last = "%d: %s" % (number, error)
        raise UpdateError(CHUNK, "chunk " + last)

    async def _store(self, length, wanted):
        number, page, pages, crc, start, end = chunk_head(self.buffer, length)
        value = 0
        if self.kind == MAPPED and wanted == 0:
            start, value = self._table(start, end)
        first = page * PAGE
        size = min(self.size - first, pages * PAGE)
        # Nothing to write is right only where there is nothing behind the table.
        if number != wanted or size < 0 or (size == 0) != (start == end):
            raise PackError("place")
        slots, mapped = self.slots, self.mapped
        if self.kind == FULL:
            prefix = _Prefix(None, 0, slots.idle, 0)
            known = first
        else:
            known = slots.running_size
            if mapped is None:
                prefix = _Prefix(slots.running, known, slots.idle, first)
            else:
                prefix = mapped
                known = mapped.begin(first)
        decoder = slots.decoder
        sector = page

        def done(n):
            nonlocal sector, value
            if sector * PAGE >= self.size:
                raise ZstdError("beyond the image")
            if mapped is not None:
                mapped.back(decoder.page, sector * PAGE, n)
            view = memoryview(decoder.page)[:n]
            value = flash.crc32(view, value)
            try:
                # After a power cut the first pages of a chunk stand there already.
                if not flash.holds(slots.idle, sector * PAGE, view):
                    flash.erase(slots.idle, sector)
                    flash.write(slots.idle, sector * PAGE, view)
            except OSError as error:
                raise UpdateError(FLASH, str(error))
            sector += 1

        if size:
            for _ in decoder.decode(self.buffer, start, end, known, size, prefix, done):
                await asyncio.sleep(0)  # the application goes on
        if value != crc:
            raise ZstdError("crc")

    def _table(self, start, end):
        """Read the address table of a mapped delta, with which its first chunk begins. Returns where it ends, and its CRC."""
        from dfu.mapped import Mapped, table_of

        slots = self.slots
        data, start = table_of(self.buffer, start, end, slots.decoder)
        self.mapped = Mapped(slots.running, slots.running_size, data, self.size, slots.idle)
        return start, flash.crc32(data)

    def _finish(self):
        """The slot holds the image exactly as the manifest says, or this raises and the transfer is forgotten."""
        slots = self.slots
        if self.stage is not None:
            if not self.stage.whole(self.chunks):
                self.resume.forget()
                raise UpdateError(CHUNK, "the stage does not hold the package")
            self.written = True
            return
        if flash.digest(slots.idle, self.size, slots.decoder.page) != self.manifest.sha256:
            self.resume.forget()
            raise UpdateError(IMAGE_HASH, "the slot does not hold what the manifest says")
        if flash.envelope_of(slots.idle, slots.size) != self.envelope:
            trailer = slots.size // flash.SECTOR - 1
            if not flash.blank(slots.idle, trailer * flash.SECTOR, flash.SECTOR):
                flash.erase(slots.idle, trailer)
            flash.write_trailer(slots.idle, slots.size, self.envelope)
        self.written = True

    def switch(self):
        """Have the bootloader boot the new image on trial, or decode the stage first."""
        slots = self.slots
        if self.stage is not None:
            self.stage.close(self.chunks, self.kind, self.base, self.envelope)
            slots.state.append(slot=slots.slot, phase=flash.INSTALL, crashes=0, outcome=0, reset=0, tried=0)
            return
        self.resume.forget()
        slots.state.append(slot=1 - slots.slot, phase=flash.TRIAL, crashes=0, previous=1, outcome=0, reset=0, tried=0)

    def drop(self):
        self.resume.forget()


class Slots:
    """The partitions, the running image and the state log."""

    def __init__(self, partition_class):
        # 16 KB that stay: once an application runs, its heap does not get whole again.
        self.decoder = Decoder()
        p = partition_class

        def data(subtype):
            return p.find(p.TYPE_DATA, subtype)[0]

        self.running = p(p.RUNNING)
        self.slot = 1 if self.running.info()[4] == "ota_1" else 0
        self.idle = p.find(p.TYPE_APP, 0x10 + 1 - self.slot)[0]
        self.size = self.idle.info()[3]
        self.capacity = self.size - flash.SECTOR
        self.stage, self._keys, self._diag = data(0x42), data(0x41), data(0x43)
        self.state = flash.State(data(0x40))
        if not self.state.known:
            self.state.slot = self.slot
        self.diagnostics = flash.Diagnostics(self._diag)
        envelope = flash.envelope_of(self.running, self.size)
        self.manifest = Manifest(envelope) if envelope else None
        self.running_size = self.manifest.size if self.manifest else flash.image_size(self.running)
        self.digest = flash.digest(self.running, self.running_size, self.decoder.page)
    def keys(self):
        return flash.keys(self._keys)

    def result(self):
        """Return what the last change of slots came to, for the status, or None if there is nothing to tell."""
        state = self.state
        if state.outcome < 2 or state.outcome == 9 or not state.tried:
            return None
        if state.outcome == 7:
            from dfu import stage

            envelope = stage.envelope_of(self.stage)
        else:
            envelope = flash.envelope_of(self.idle, self.size)
        tried = Manifest(envelope).sha256 if envelope else b""
        if int.from_bytes(tried[:4], "little") != state.tried:
            return None
        code = {2: 1, 3: 3, 4: 4, 5: 5, 10: 2}.get(state.outcome, INTERNAL)
        text, crashes, record = "", 0, b""
        told = self.diagnostics.last(2, 1 - self.slot)
        if told is not None:
            text = bytes(told[52:504]).rstrip(b"\0").decode()
        crash = self.diagnostics.last(1, 1 - self.slot)
        if crash is not None:
            crashes, record = crash[10], bytes(crash)
            cause = int.from_bytes(crash[12:16], "little")
            if cause >> 16 == 0xDF0C:
                code = cause & 0xFFFF
        outcome = 3 if state.outcome == 7 else 2
        failed = self.diagnostics.last(5, 1 - self.slot) if outcome == 3 else None
        if failed is not None:
            number = int.from_bytes(failed[12:16], "little")
            text, record = "the bootloader's error %d" % number, bytes(failed)
            code = {3: IMAGE_HASH, 4: SIGNATURE, 5: DOWNGRADE, 11: CHUNK, 12: CHUNK, 13: BASE, 15: TOO_LARGE}.get(number, INTERNAL)
        return {0: outcome, 1: tried, 2: code, 3: text, 4: crashes, 5: state.reset, 6: record}

    def told(self):
        """The server has the result: forget it."""
        self.state.append(outcome=0, tried=0)
        self.diagnostics.clear()

