"""The agent's loop: say where the device is, do what the server says. docs/agent.md."""

import asyncio
import gc
import random
import sys

from dfu import flash
from dfu.pack import PackError, pack, unpack
from dfu.transport import Denied, Gone, TransportError, make
from dfu.update import INTERNAL, SELF_TEST, Slots, Update, UpdateError

WAIT, SYNC, UPDATE, STOP = range(4)
KINDS = 1 << 1 | 1 << 2 | 1 << 3
STORE0 = 0x60008050  # esp32c3-boot: bootloader/FORMAT.md, "the agent's mark"
MARK = 0xDF0C0000
CRASHED, UNCONFIRMED = 1, 2
BACKOFF_MIN_MS, BACKOFF_MAX_MS = 1000, 60000
PROGRESS_EVERY = 16

# ESP32-C3's RTC watchdog: CONFIG0, and from there on CONFIG1, FEED and PROTECT. Source: ESP32-C3 TRM, "Low-Power Management",
# RTC_CNTL_WDT*; the bootloader starts it.
WDT = 0x60008090
SLOW_CLOCK_KHZ = 136


class Agent:
    """One a device. `start()` is given the running loop; everything else happens in its tasks."""

    def __init__(self, config):
        import esp32
        import machine

        self.config = config
        self.machine = machine
        # Collecting early and often keeps the free heap in large pieces: an update needs some of 4 KB.
        gc.collect()
        gc.threshold(config.get("gc_threshold", 8192))
        self.payload = config.get("payload", 6144)
        # A chunk's header; and a datagram's, which is received where its block belongs.
        self.buffer = bytearray(self.payload + 32 + 128)
        self.slots = Slots(esp32.Partition)
        config.setdefault("hardware", "esp32c3")
        self.enrolment = None
        if config.get("claim") and not config.get("secret"):
            from dfu.enrol import Enrolment

            enrolment = Enrolment(config)
            self.enrolment = enrolment if enrolment.needed else None
        self.transport = make(config)
        if self.enrolment is not None and not hasattr(self.transport, "enrol"):
            raise ValueError("this transport cannot enrol")
        self.update = None
        self.result = self.slots.result()
        self.trial = self.slots.state.phase == flash.TRIAL and self.slots.state.slot == self.slots.slot
        self.confirmed = asyncio.Event()
        if not self.trial:
            self.confirmed.set()

    # The image that runs

    def confirm(self):
        """The running image is good: it stays."""
        if self.trial:
            m = self.slots.manifest
            state = self.slots.state
            changes = {"phase": flash.CONFIRMED, "crashes": 0, "outcome": 1, "tried": 0}
            if m is not None:
                changes["floor"] = max(state.floor, m.floor)
                changes["accept"] = m.sequence
            state.append(**changes)
            self.trial = False
            self._watchdog(0)
        elif self.slots.state.crashes:
            self.slots.state.append(crashes=0)
        self.confirmed.set()

    def fail(self, code, text):
        """Keep `text` (or an exception's traceback), mark the start as a crash, reset: the bootloader decides. Does not return."""
        try:
            if not isinstance(text, str):
                # Out of memory is one of the reasons to be here: give back what is ours before asking for any.
                self.buffer = self.slots.decoder = self.update = None
                gc.collect()
                text = traceback_of(text)
            self.slots.diagnostics.text(self.slots.slot, text)
        except (OSError, MemoryError):
            pass  # a mark without a text still counts
        self.machine.mem32[STORE0] = MARK | code
        self.machine.reset()

    def _watchdog(self, ms):
        """Set the RTC watchdog to reset the chip after `ms` without feeding; 0 stops it."""
        mem32 = self.machine.mem32
        mem32[WDT + 0x18] = 0x50D83AA1
        if ms:
            # The chip counts two cycles of the slow clock as one (ESP-IDF, rwdt_ll_config_stage).
            mem32[WDT + 4] = ms * SLOW_CLOCK_KHZ // 2
            mem32[WDT] = 1 << 31 | 3 << 28 | 7 << 16 | 7 << 13
            mem32[WDT + 0x14] = 1 << 31
        else:
            mem32[WDT] = 0
        mem32[WDT + 0x18] = 0

    async def _trial(self):
        """Feed the watchdog until the image is confirmed; give up when its time is over."""
        left_ms = int(self.config.get("confirm_s", 120) * 1000)
        watchdog_ms = int(self.config.get("watchdog_s", 8) * 1000)
        test = self.config.get("self_test")
        self._watchdog(watchdog_ms)
        if test is not None:
            try:
                test()
            except Exception as error:
                self.fail(SELF_TEST, error)
        step_ms = max(10, min(watchdog_ms // 4, 1000))
        while not self.confirmed.is_set():
            if left_ms <= 0:
                self.fail(UNCONFIRMED, "not confirmed in time")
            await asyncio.sleep_ms(step_ms)
            left_ms -= step_ms
            if self.trial:
                self._watchdog(watchdog_ms)

    # Talking

    def status(self):
        slots, config = self.slots, self.config
        m = slots.manifest
        said = {
            0: 1,
            1: m.version if m else config.get("version") or flash.app_version(slots.running) or "0",
            2: slots.digest,
            3: config["hardware"],
            4: KINDS,
            5: self.payload,
            6: slots.capacity,
        }
        if self.trial:
            said[7] = True
        if self.update is not None:
            said[8] = self.update.progress()
        if self.result is not None:
            said[9] = self.result
        reason = self._may_update()
        if reason is not None:
            said[10] = {0: reason[0][:64], 1: reason[1]}
        if config.get("attributes"):
            said[11] = config["attributes"]
        if slots.state.accept:
            said[12] = slots.state.accept
        return pack(said)

    def _may_update(self):
        """Return (reason, seconds) if the application does not want an update now."""
        ask = self.config.get("may_update")
        answer = ask() if ask is not None else None
        if answer is None or answer is True:
            return None
        return ("the application is busy", 60) if answer is False else answer

    async def _exchange(self, wait_s):
        """Send a status, return the decoded command and its bytes, or None."""
        if self.enrolment is not None:
            await self.enrolment.present(self.transport, self.buffer)
            self.enrolment = None
        result = self.result
        length = await self.transport.status(self.status(), wait_s, self.buffer)
        if result is not None and result is self.result:
            self.result = None
            if result[0] != 3 or self.slots.state.outcome == 7:
                self.slots.told()
        if not length:
            return None
        raw = bytes(memoryview(self.buffer)[:length])
        try:
            command = unpack(raw)
            if not isinstance(command, dict) or not isinstance(command.get(0), int):
                raise PackError("no command")
        except PackError as error:
            raise TransportError("command: %s" % error)
        return command, raw

    async def run(self):
        """Serve for ever. Only a reset ends this."""
        backoff_ms = BACKOFF_MIN_MS
        wait_s = 0
        while True:
            try:
                found = await self._exchange(wait_s)
                wait_s = self.config.get("wait_s", 60)
                backoff_ms = BACKOFF_MIN_MS
                if found is not None:
                    wait_s = await self._do(found[0], found[1], wait_s)
            except UpdateError as error:
                self._failed(error.args[0], error.args[1])
                wait_s = 0
            except Gone:
                if self.update is not None:
                    self.update.drop()
                    self.update = None
                wait_s = 0
            except (TransportError, ValueError, KeyError, TypeError, IndexError) as error:
                # The last four come from bytes that are no answer at all: as if there had been none.
                print("dfu:", error)
                await self.transport.close()
                if isinstance(error, Denied):
                    backoff_ms = BACKOFF_MAX_MS if "backoff_ms" not in self.config else backoff_ms
                limit_ms = self.config.get("backoff_ms", BACKOFF_MAX_MS)
                await asyncio.sleep_ms(min(backoff_ms, limit_ms) * (50 + random.getrandbits(6)) // 100)
                backoff_ms = min(2 * backoff_ms, limit_ms)
            except MemoryError as error:
                self._failed(INTERNAL, "out of memory")
                gc.collect()
                sys.print_exception(error)
                await asyncio.sleep_ms(1000)

    async def _do(self, command, raw, wait_s):
        """Do what a command says; return how long to wait for the next one."""
        kind = command[0]
        if kind == UPDATE and not self.trial:
            if self.update is None or self.update.raw != raw:
                try:
                    self.update = Update(command, raw, self.slots, self.config, self.buffer)
                except (KeyError, TypeError):
                    raise TransportError("update command")
                digest = self.update.manifest.sha256
                self.failed = digest
                if hasattr(self.transport, "rest"):
                    self.transport.rest()  # verifying a signature takes what there is
                self.update.begin()
                self._progress()
            elif self.update.written:
                self.update.switch()
                await self.transport.close()
                self.machine.reset()
            await self._fetch()
            return 0
        if kind == STOP and self.update is not None:
            self.update.drop()
            self.update = None
        poll_s = command.get(1, 60)
        if kind != UPDATE and self.update is not None:
            return min(wait_s, max(1, poll_s))
        if poll_s <= 5:
            await asyncio.sleep_ms(max(poll_s, 1) * 1000 if not self.trial else 300)
            return 0
        return wait_s

    async def _fetch(self):
        """Fetch until the image is whole, telling the server now and then."""
        update = self.update
        since = 0
        while update is not None and not update.written:
            gc.collect()
            await update.fetch(self.transport)
            self._progress()
            since += 1
            if since % PROGRESS_EVERY == 0 and self._may_update() is not None:
                return

    def _progress(self):
        tell = self.config.get("progress")
        if tell is not None and self.update is not None:
            tell(self.update.next, self.update.chunks)

    def _failed(self, code, text):
        """Remember that the update under way cannot be done, for the next status."""
        digest = self.update.manifest.sha256 if self.update is not None else getattr(self, "failed", None)
        if self.update is not None:
            try:
                self.update.drop()
            except OSError:
                pass  # flash that does not work is what is being told
        self.update = None
        if digest is not None:
            self.result = {0: 3, 1: digest, 2: code, 3: text, 4: 0, 5: 0, 6: b""}


def traceback_of(error):
    import io

    out = io.StringIO()
    sys.print_exception(error, out)
    return out.getvalue().rstrip()
