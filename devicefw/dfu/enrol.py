"""First contact: the device makes its own secret, keeps it in NVS, and shows it with a claim code. docs/agent.md, "Enrolment".

The secret is kept before it is shown for the first time, so an answer that is lost, or a power cut, costs another try only. Where NVS
takes nothing the application runs without updates, and it is tried again before each try to enrol. One that is there is never written
over: NVS that could not be read for a moment may have the secret that the server knows.
"""

import binascii
import os

from dfu.errors import TransportError
from dfu.pack import pack

NAMESPACE = "dfud"
SECRET_BYTES = 16
SECRET_LENGTH = 22
ABSENT = (-0x1102, -0x110C)  # ESP-IDF, nvs.h: not found; longer than what is kept here
ID_LENGTH = 10  # of the part of a claim code that names it


class Enrolment:
    """Fills in config["secret"] and, if it is missing, config["device"]. `needed`: this claim was not accepted yet."""

    def __init__(self, config):
        import esp32
        import machine

        self.config = config
        self.nvs = esp32.NVS
        if not config.get("device"):
            config["device"] = binascii.hexlify(machine.unique_id()).decode()
        secret = self._read("secret", SECRET_LENGTH)
        self.kept = bool(secret)
        if not self.kept:
            made = binascii.b2a_base64(os.urandom(SECRET_BYTES))[:SECRET_LENGTH]
            secret = made.replace(b"+", b"-").replace(b"/", b"_")
        config["secret"] = secret.decode()
        self.kept = self.kept or self._keep_new()
        self.needed = self._read("claim", ID_LENGTH) != config["claim"][:ID_LENGTH].encode()

    def _read(self, key, length):
        """Return what NVS has, None: nothing, False: that cannot be read just now."""
        buffer = bytearray(length)
        try:
            return bytes(buffer) if self.nvs(NAMESPACE).get_blob(key, buffer) == length else None
        except OSError as error:
            return None if error.args and error.args[0] in ABSENT else False

    def _keep_new(self):
        """Keep the secret that was made, and return whether NVS has it."""
        secret = self.config["secret"].encode()
        there = self._read("secret", SECRET_LENGTH)
        if there is None or there == secret:  # its own: from a try whose commit failed
            return self._keep("secret", secret)
        print("dfu: nvs: a secret is there that could not be read" if there else "dfu: nvs: the secret cannot be read")
        return False

    def _keep(self, key, value):
        """Return whether NVS has it."""
        try:
            nvs = self.nvs(NAMESPACE)
            nvs.set_blob(key, value)
            nvs.commit()
            return True
        except OSError as error:
            print("dfu: nvs: the %s cannot be kept:" % key, error)
            return False

    async def present(self, transport, buffer):
        """Show code and secret; raises Denied, TransportError. The same again is no harm."""
        c = self.config
        self.kept = self.kept or self._keep_new()
        if not self.kept:
            # With the next reset it would be lost, and the server would know another one than the device.
            raise TransportError("not enrolled before the secret is kept")
        await transport.enrol(pack({0: 1, 1: c["app"], 2: c["device"], 3: c["claim"], 4: c["secret"]}), buffer)
        self._keep("claim", c["claim"][:ID_LENGTH].encode())  # else it is shown again after the next reset
        self.needed = False
