# machine.UART, of a board whose line is connected to something.
class UART:
    # A serial line as on an ESP32: read() gives what there is, None if nothing, and does not wait; write() takes all of it. What is more
    # than rxbuf when somebody looks is lost. Rate and pins are not looked at; without a line of the board's nothing ever comes.
    def __init__(self, id, baudrate=115200, tx=None, rx=None, rxbuf=256, txbuf=256):
        import select
        from esp32 import board

        path = board().get("uart")
        self._size, self._kept = rxbuf, b""
        self._file = open(path, "r+b", buffering=0) if path else None
        self._poll = select.poll()
        if path:
            self._poll.register(self._file, select.POLLIN)

    def _fill(self):
        lost = 0
        while lost < 8192 and self._poll.poll(0):
            one = self._file.read(1)
            if not one:
                break
            if len(self._kept) < self._size:
                self._kept += one
            else:
                lost += 1

    def any(self):
        self._fill()
        return len(self._kept)

    def read(self, size=-1):
        self._fill()
        size = len(self._kept) if size < 0 else size
        data, self._kept = self._kept[:size], self._kept[size:]
        return data or None

    def write(self, data):
        if self._file is not None:
            self._file.write(data)
        return len(data)
