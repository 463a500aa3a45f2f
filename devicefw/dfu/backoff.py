"""How long to wait after a failure: doubling, jittered, and kept over resets.

Two counts: attempts to reach a server that failed, or that came to nothing before a byte was written; and updates begun since the last
one that was confirmed. They are kept as one number in NVS, which levels its wear; and the first one only once it is worth it, so that
nobody wears flash out by failing now and then.
"""

import random
import time

ANSWER, BEGUN = 0, 1
FIRST_MS = 1000
KEPT_FROM = 4  # attempts: half a minute


class Backoff:
    """config: backoff_ms and update_backoff_ms are the longest pauses. fresh: somebody switched the device on."""

    def __init__(self, config, fresh):
        import esp32

        self.limits = (config.get("backoff_ms", 60000), config.get("update_backoff_ms", 3600000))
        self._nvs = esp32.NVS
        try:
            self._kept = self._nvs("dfud").get_i32("backoff") & 0xFFFF
        except OSError:
            self._kept = 0
        self._counts = [0 if fresh else self._kept & 0xFF, self._kept >> 8]
        self._until = None
        self.least_ms = 0  # that the server asked for
        self.hold()

    def _set(self, which, count):
        self._counts[which] = count
        kept = (self._counts[0] if self._counts[0] >= KEPT_FROM else 0) | self._counts[1] << 8
        if kept != self._kept:
            self._kept = kept
            try:
                nvs = self._nvs("dfud")
                nvs.set_i32("backoff", kept)
                nvs.commit()
            except OSError:
                pass  # worn out or full, of which the namespace may be what has no room: then in RAM only

    def failed(self, which):
        """Count a failure, up to where the pause is the longest."""
        count = self._counts[which]
        if not count or FIRST_MS << count - 1 < self.limits[which] and count < 30:
            self._set(which, count + 1)

    def good(self, which):
        self.least_ms = 0
        if self._counts[which]:
            self._set(which, 0)
        if which == BEGUN:
            self._until = None

    def pause_ms(self, which):
        """Return how long to wait after so many failures: three quarters of it on average, and what a server that is away asked for."""
        count, limit = self._counts[which], self.limits[which]
        pause_ms = min(FIRST_MS << count - 1, limit) * (64 + random.getrandbits(6)) // 128 if count else 0
        return pause_ms if which else max(pause_ms, min(self.least_ms, limit))

    def hold(self):
        """No update may begin for a while from now on."""
        self._until = time.ticks_add(time.ticks_ms(), self.pause_ms(BEGUN)) if self._counts[BEGUN] else None

    def left_ms(self):
        """Return how long no update may begin yet. To be asked every few days at least: ticks_ms() wraps."""
        left = time.ticks_diff(self._until, time.ticks_ms()) if self._until is not None else 0
        if left <= 0:
            self._until = None
        return max(0, left)
