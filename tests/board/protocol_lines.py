"""lines://PORT, as pyserial names handlers: a pty with the modem lines that it does not have."""

from __future__ import annotations

import serial

RESET: list[bool] = []  # each state that RTS was given


class Serial(serial.Serial):
    @property
    def cts(self) -> bool:
        return False

    def _update_rts_state(self) -> None:
        RESET.append(bool(self._rts_state))

    def _update_dtr_state(self) -> None:
        pass


def serial_class_for_url(url: str) -> tuple[str, type[Serial]]:
    return url.removeprefix("lines://"), Serial
