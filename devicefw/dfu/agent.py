"""The agent's loop: say where the device is, do what the server says. docs/agent.md.

Whatever a server or a link sends is judged by type before it is used, and what is wrong with it ends in run(), as no answer: it never
becomes a crash, for crashes take firmware off a device.
"""

import asyncio
import gc
import sys
import time

from dfu.backoff import ANSWER, FIRST_MS
from dfu.errors import INTERNAL, Denied, Gone, UpdateError, clear, forget
from dfu.pack import UINT32, field, pack, unpack

CRASHED = 1
# What is loaded for an update only. Viper's code is not among it: it is not in the heap, and is given back by nothing but a reset.
UPDATING = ("transfer", "update", "zstd", "mapped", "stage", "chunk", "manifest", "flash", "records")


def fail(code, what, agent=None, app=False):
    """Keep `what` (a text, or an exception for its traceback), mark the start as a crash, reset: the bootloader decides. Does not
    return. agent: what can give RAM back. app: it is the application's own end, counted for its bank, if it came from one; so is
    everything while that is on trial, and nothing while the image in the slot is."""
    import machine

    mark, slot, apps = 0xDF0C0000, None, agent.apps if agent is not None else None
    ours = agent is not None and agent.slots.state.part
    # What is in the register says that the application was entered.
    if apps is not None and machine.mem32[0x60008050] >> 16 == 0xDFA9 and (apps.trial or app and not agent.trial):
        mark, slot = 0xDFA90000, 2 + apps.slot
        apps.room = None
    try:
        if agent is not None:
            # Out of memory is one of the reasons to be here: give back what is ours before asking for any.
            agent.buffer = agent.slots.room = agent.update = None
        gc.collect()
        if agent is None:
            import esp32

            ours = esp32.Partition.find(esp32.Partition.TYPE_DATA, 0x40)
        from dfu.crash import keep

        ours = keep(what, slot, code)
    except Exception as error:
        print("dfu:", error)  # a mark without a text still counts
    if ours:
        machine.mem32[0x60008050] = mark | code  # RTC STORE0: bootloader/FORMAT.md, "the agent's mark"
    machine.reset()


class Agent:
    """One a device. `start()` is given the running loop; everything else happens in its tasks."""

    def __init__(self, config):
        from dfu.setup import setup

        setup(self, config)
        clear("setup")

    # The image that runs

    def confirm(self):
        """The running image is good: it stays."""
        if self.trial or self.slots.state.crashes:
            from dfu.trial import confirm

            confirm(self)
            forget("trial")
        if self.apps is not None and (self.apps.trial or self.apps.state.crashes):
            from dfu.apps import confirm

            confirm(self)
            clear("apps")
        self.confirmed.set()

    # Talking

    def status(self):
        slots, config = self.slots, self.config
        m = slots.manifest
        said = {
            0: 1,
            1: m.version if m else config.get("version") or slots.app_version or "0",
            2: slots.digest,
            3: config["hardware"],
            4: 1 << 1 | 1 << 2 | 1 << 3,  # package kinds
            5: self.payload,
            6: slots.capacity,
        }
        if self.trial:
            said[7] = True
        if self.update is not None:
            said[8] = self.update.progress()
        if self.result is not None:
            said[9] = self.result
        reason = self.may_update()
        if reason is not None:
            said[10] = reason
        if config.get("attributes"):
            said[11] = config["attributes"]
        if slots.state.accept:
            said[12] = slots.state.accept
        if self.starts is not None:
            said[13] = self.starts
        if m:
            said[14] = m.sequence
        if self.apps is not None:
            said[15] = self.apps.said
        if slots.flags:
            said[16] = slots.state.said(slots.flags)
        return pack(said)

    def may_update(self):
        """Return what to say if there should be no update now: the application says so, or (key 2) one that failed is not long ago."""
        if self.update is None:
            left_ms = self.backoff.left_ms()
            if left_ms:
                return {0: "waiting after an update that did not end well", 1: left_ms // 1000 + 1, 2: True}
        ask = self.config.get("may_update")
        try:
            answer = ask() if ask is not None else None
            if answer is None or answer is True:
                return None
            reason, seconds = answer or ("the application is busy", 60)
            reason, seconds = str(reason), max(0, int(seconds))
        except Exception as error:
            # The users see it; the device goes on as it is.
            reason, seconds = "may_update: %s" % error, 60
        return {0: reason[:64], 1: seconds}

    async def _exchange(self, wait_s):
        """Send a status, return the decoded command and its bytes, or None."""
        if self.enrolment is not None:
            await self.enrolment.present(self.transport, self.buffer)
            self.enrolment = None
        result = self.result
        length = await self.transport.status(self.status(), wait_s, self.buffer)
        if self.serves:
            self.serves = 2
        if result is not None and result is self.result:
            self.result = None
            apps = self.apps
            if apps is not None and result is apps.result:
                from dfu.apps import told

                told(apps)
                clear("apps")
            elif result[0] != 3 or self.slots.state.outcome == 7:
                from dfu.result import told

                told(self.slots)
                forget("starts", "result")
            if apps is not None:
                self.result = apps.result
        if not length:
            return None, b""
        raw = bytes(memoryview(self.buffer)[:length])
        command = unpack(raw)
        field(command, 0, int, UINT32)
        return command, raw

    async def run(self):
        """Serve for ever. Only a reset ends this."""
        wait_s, most_s = 0, self.config.get("wait_s", 60)
        await asyncio.sleep_ms(self.backoff.pause_ms(ANSWER))
        while True:
            since = time.ticks_ms()
            wait_s = await self.turn(wait_s, most_s)
            if wait_s is None:
                wait_s = 0
                await asyncio.sleep_ms(self.backoff.pause_ms(ANSWER))
            elif wait_s:
                # There was nothing to do: who says so at once, again and again, is not asked in a circle.
                least_ms = min(FIRST_MS, self.backoff.limits[ANSWER])
                if not most_s:
                    least_ms, wait_s = wait_s * 1000, 0
                await asyncio.sleep_ms(max(0, least_ms - time.ticks_diff(time.ticks_ms(), since)))

    async def turn(self, wait_s, most_s):
        """Ask once, do what the answer says. Return how long there is nothing to do, most_s at most if that is not 0; 0: ask at once;
        None: it failed, and is counted. Without an update under way, what only one needs is not loaded behind it."""
        wait_s = await self._turn(wait_s, most_s)
        if self.update is None:
            clear(*UPDATING)
        return wait_s

    async def _turn(self, wait_s, most_s):
        failures = 1
        try:
            command, raw = await self._exchange(wait_s)
            wait_s = most_s or 60
            if command is not None:
                wait_s = await self._do(command, raw, most_s)
            self.backoff.good(ANSWER)
            return wait_s
        except UpdateError as error:
            print("dfu: update:", error.args[1])
            self._failed(*error.args)
        except Gone as error:
            print("dfu:", error)
            self.drop()
        except MemoryError as error:
            if self.update is not None:
                self._failed(INTERNAL, "out of memory")
            await self.close()  # what it was reading it left in the middle
            gc.collect()
            sys.print_exception(error)
        except Exception as error:
            # Bytes that are no answer, or no link: as if there had been none.
            print("dfu:", error)
            await self.close()
            if isinstance(error, Denied):
                failures = 7  # what leads to a minute: credentials do not come right by themselves
        for _ in range(failures):
            self.backoff.failed(ANSWER)
        self.backoff.least_ms = getattr(self.transport, "retry_s", 0) * 1000

    async def close(self):
        try:
            await self.transport.close()
        except Exception as error:
            print("dfu: close:", error)

    async def _do(self, command, raw, wait_s):
        """Do what a command says; return how long to wait for the next one, 0: ask at once. wait_s: the longest, 0: as it says."""
        kind, poll_s = command[0], field(command, 1, int, UINT32, 0, 60)
        wait_s = wait_s or min(max(1, poll_s), 86400)
        # 0 is wait, 1 sync, 2 update, 3 stop; numbers, for a name stays in RAM.
        if kind == 2 and not (self.trial or self.apps and self.apps.trial):
            from dfu.transfer import serve

            return await serve(self, command, raw)
        if kind == 3:
            self.drop()
        if kind != 2 and self.update is not None:
            return min(wait_s, max(1, poll_s))
        if poll_s <= 5:
            await asyncio.sleep_ms(max(poll_s, 1) * 1000 if not (self.trial or self.apps and self.apps.trial) else 300)
            return 0
        left_ms = self.backoff.left_ms()
        return min(wait_s, left_ms // 1000 + 1) if left_ms else wait_s

    def drop(self, whole=True):
        """Leave the update under way, and begin none for a while. whole: forget in flash, too, how far it came."""
        update, self.update = self.update, None
        if update is not None:
            self.backoff.hold()
            if whole:
                try:
                    update.drop()
                except OSError as error:
                    print("dfu: flash:", error)

    def _failed(self, code, text):
        from dfu.transfer import failed

        failed(self, code, text)
