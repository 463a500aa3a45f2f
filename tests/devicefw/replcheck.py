# MicroPython's raw REPL as the esp32 port has it, for the unix port, which has none: what mpremote talks to. Argument: a directory, which
# is the device's file system. Source: docs/reference/repl of MicroPython, "Raw mode".
import sys

import vfs

vfs.umount("/")
vfs.mount(vfs.VfsPosix(sys.argv[1]), "/")
sys.path[:] = ["", ".frozen", "/lib"]
BANNER = b"raw REPL; CTRL-B to exit\r\n>"
put = sys.stdout.buffer.write
get = sys.stdin.buffer.read
text, raw, names = b"", False, {"__name__": "__main__"}
while True:
    one = get(1)
    if not one:
        break
    if one == b"\x01":  # Ctrl-A
        raw, text = True, b""
        put(BANNER)
    elif one == b"\x02":
        raw = False
        put(b"\r\n>>> ")
    elif one == b"\x03":
        text = b""
    elif one == b"\x04" and raw:
        if not text:
            names = {"__name__": "__main__"}
            put(b"OK\r\nMPY: soft reboot\r\n" + BANNER)
            continue
        put(b"OK")
        failed = b""
        try:
            exec(text.decode(), names)
        except BaseException as error:
            import io

            told = io.StringIO()
            sys.print_exception(error, told)
            failed = told.getvalue().encode()
        text = b""
        put(b"\x04" + failed + b"\x04>")
    elif raw:
        text += one
        if text == b"\x05A":
            get(1)  # Ctrl-A: may text be pasted? No.
            text = b""
            put(b"R\x00")
