"""One update: fetch its chunks into the idle slot, verify the whole. Resumes where it was cut."""

import asyncio
import hashlib
from time import ticks_diff, ticks_ms

from dfu import flash, state
from dfu.chunk import chunk_head
from dfu.errors import CHUNK, FLASH, HARDWARE, IMAGE_HASH, PackError, UpdateError, ZstdError, clear
from dfu.pack import UINT32, field, unpack

PAGE = 4096
FULL, DELTA, MAPPED = 1, 2, 3
CHUNK_TRIES = 3


def _on_flash(method):
    """Have what flash refuses end as an UpdateError."""

    async def tried(self):
        try:
            await method(self)
        except OSError as error:
            raise UpdateError(FLASH, "flash: %s" % error)

    return tried


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
    """`command` is the decoded update command, `raw` its bytes, `slots` a dfu.slots.Slots, `buffer` the transport's.

    Raises PackError if the command is none, UpdateError if its manifest is none.
    """

    def __init__(self, command, raw, slots, config, buffer):
        if len(raw) > flash.MARKS_AT - 12:
            raise PackError("update command of %d bytes, at most %d" % (len(raw), flash.MARKS_AT - 12))
        self.raw = raw
        envelope = field(command, 3, bytes, flash.TRAILER_MAX)
        self.package, self.kind = field(command, 4, bytes, 16, 16), field(command, 5, int, 255)
        self.size, self.chunks = field(command, 6, int, UINT32), field(command, 7, int, 1 << 20, 1)
        total, self.base = field(command, 8, int, UINT32, 0, 0), field(command, 9, bytes, 32, 0, b"")
        from dfu.manifest import read

        self.manifest = read(envelope)
        clear("manifest")
        self.app = self.manifest.flags & 4  # an image for a bank
        if self.app:
            slots = slots.apps
            if slots is None:
                raise UpdateError(HARDWARE, "an app image, and this device has no banks for one")
        self.slots, self.config, self.buffer = slots, config, buffer
        self.resume = flash.Resume(slots.stage)
        self.next = 0
        self.resumed = self.written = False
        self.stage = None
        self.mapped = None
        self.decoder = None
        self.took = [0, 0, 0]  # bytes of chunks, milliseconds to receive them, milliseconds to decode and store them
        if config.get("install") == "bootloader" and not self.app:
            from dfu import stage

            if stage.fits(slots.stage, total, self.chunks, self.kind):
                self.stage = stage.Stage(slots.stage, self.package)

    async def judge(self):
        """Raise UpdateError unless this device may install it. Writes nothing."""
        from dfu.judge import judge

        try:
            await judge(self, self.slots, self.config["app"], self.config["hardware"])
        finally:
            clear("judge", "records", "ed25519", "idf")

    @_on_flash
    async def find(self):
        """Find out whether this transfer was cut before, and how far it came: sets `resumed` and `next`."""
        found = self.resume.load()
        if found is None or found[0] != self.raw:
            return
        if self.stage is not None:
            try:
                self.stage.skip(found[1])
            except PackError:
                self.stage.rewind()  # what is marked as stored is not there: from the start
                return
        self.resumed, self.next = True, found[1]

    @_on_flash
    async def begin(self):
        """Prepare the idle slot, if the transfer is not one that goes on."""
        slots = self.slots
        if self.resumed:
            if self.next >= self.chunks:
                await self._finish()
            return
        self.resume.forget()
        await asyncio.sleep(0)
        if self.app:
            from dfu.apps import begin

            begin(slots)
            clear("apps")
            await asyncio.sleep(0)
        if self.stage is None:
            trailer = slots.size // flash.SECTOR - 1
            if not flash.blank(slots.idle, trailer * flash.SECTOR, flash.SECTOR):
                flash.erase(slots.idle, trailer)
                await asyncio.sleep(0)
        self.resume.begin(self.raw)

    def progress(self):
        said = {0: self.package, 1: self.next, 2: 1 if self.written else 0}
        if self.took[0]:
            said[3] = self.took
        return said

    async def fetch(self, transport):
        """Fetch and store the next chunk; after the last one verify the image. Raises UpdateError, TransportError."""
        if self.kind == MAPPED and self.stage is None and self.next and self.mapped is None:
            # After a reset: the table was in RAM. Its pages stand in flash, and stay.
            await self._fetch_one(transport, 0)
        await self._fetch_one(transport, self.next)
        self.next += 1
        if self.next == self.chunks:
            if hasattr(transport, "rest"):
                transport.rest()
            await self._finish()

    async def _fetch_one(self, transport, number):
        last, took = "", self.took
        for _ in range(CHUNK_TRIES):
            asked = ticks_ms()
            length = await transport.chunk(self.package, number, self.buffer)
            since = ticks_ms()
            try:
                if self.stage is not None:
                    await self.stage.add(self.buffer, length, number)
                else:
                    await self._store(length, number)
                if number == self.next:
                    self.resume.mark(number)
                took[0] += length
                took[1] += ticks_diff(since, asked)
                took[2] += ticks_diff(ticks_ms(), since)
                return
            except (PackError, ZstdError) as error:
                last = "%d: %s" % (number, error)
            except OSError as error:
                raise UpdateError(FLASH, "flash: %s" % error)
        raise UpdateError(CHUNK, "chunk " + last)

    async def _store(self, length, wanted):
        number, page, pages, crc, start, end = chunk_head(self.buffer, length)
        value = 0
        if self.decoder is None:
            # Not before: until the manifest is judged, its signature takes the room.
            from dfu.zstd import Decoder

            self.decoder = Decoder(self.slots.room)
        if self.kind == MAPPED and wanted == 0:
            start, value = await self._table(start, end)
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
        if size:
            for n in self.decoder.decode(self.buffer, start, end, known, size, prefix):
                if n:
                    value = await self._page(page, n, value)
                    page += 1
                else:
                    await asyncio.sleep(0)  # the application goes on
        if value != crc:
            raise ZstdError("crc")

    async def _page(self, page, n, value):
        """Store the page that is in the decoder; return the CRC so far. The application has its turn around the erasing."""
        slots, at = self.slots, page * PAGE
        if at >= self.size:
            raise ZstdError("beyond the image")
        view = memoryview(self.decoder.page)[:n]
        if self.mapped is not None:
            self.mapped.back(self.decoder.page, at, n)
        value = flash.crc32(view, value)
        # After a power cut the first pages of a chunk stand there already.
        stands = flash.holds(slots.idle, at, view)
        await asyncio.sleep(0)
        if not stands:
            flash.erase(slots.idle, page)
            await asyncio.sleep(0)
            flash.write(slots.idle, at, view)
            await asyncio.sleep(0)
        return value

    async def _table(self, start, end):
        """Read the address table of a mapped delta, with which its first chunk begins. Returns where it ends, and its CRC."""
        from dfu.mapped import Mapped
        from dfu.table import load, table_of

        slots = self.slots
        data, start = table_of(self.buffer, start, end, self.decoder)
        for loaded in load(slots.running, slots.running_size, data, self.size):
            await asyncio.sleep(0)
        self.mapped = Mapped(slots.running, slots.running_size, loaded, self.size, slots.idle)
        del load, table_of
        clear("table")
        return start, flash.crc32(data)

    @_on_flash
    async def _finish(self):
        """The slot holds the image exactly as the manifest says, or this raises and the transfer is forgotten."""
        slots = self.slots
        if self.stage is not None:
            try:
                whole = await self.stage.whole(self.chunks)
            except PackError:
                whole = False
            if not whole:
                self.resume.forget()
                raise UpdateError(CHUNK, "the stage does not hold the package")
            self.written = True
            return
        h = hashlib.sha256()
        for _ in flash.hashed(h, slots.idle, self.size, slots.room[-1]):
            await asyncio.sleep(0)
        if h.digest() != self.manifest.sha256:
            self.resume.forget()
            raise UpdateError(IMAGE_HASH, "the slot does not hold what the manifest says")
        envelope = self._envelope()
        if flash.envelope_of(slots.idle, slots.size) != envelope:
            trailer = slots.size // flash.SECTOR - 1
            if not flash.blank(slots.idle, trailer * flash.SECTOR, flash.SECTOR):
                flash.erase(slots.idle, trailer)
            flash.write_trailer(slots.idle, slots.size, envelope)
        self.written = True

    def _envelope(self):
        # It stands in the command: no second one is kept.
        return unpack(self.raw)[3]

    @_on_flash
    async def switch(self):
        """Have the bootloader boot the new image on trial, or decode the stage first."""
        slots = self.slots
        if self.stage is not None:
            self.stage.close(self.chunks, self.kind, self.base, self._envelope())
            slots.state.append(slot=slots.slot, phase=state.INSTALL, crashes=0, outcome=0, reset=0, tried=0)
            return
        self.resume.forget()
        # There may be no application to go back to.
        back = int(not self.app or slots.manifest is not None)
        slots.state.append(slot=1 - slots.slot, phase=state.TRIAL, crashes=0, previous=back, outcome=0, reset=0, tried=0)

    def drop(self):
        self.resume.forget()
