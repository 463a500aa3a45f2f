# Started on MicroPython in place of boot.py and main.py: the board's modules first, then the image's program.
import sys
import time

sys.path.insert(0, sys.argv[2])
import esp32  # noqa: E402
import chip  # noqa: E402

# `machine` is built into this port; the board's own goes before it.
sys.modules["machine"] = chip
with open(sys.argv[1] + "/program.py") as _file:
    _program = _file.read()
try:
    exec(_program, {"__name__": "__main__"})
except (Exception, KeyboardInterrupt) as error:
    # As on the real port: the traceback, then the REPL, which waits for ever.
    sys.print_exception(error)
while True:
    try:
        time.sleep(3600)
    except KeyboardInterrupt:
        print()
