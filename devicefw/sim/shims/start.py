# Started on MicroPython in place of _boot.py: the board's modules first, then what the board runs. That is the program that its image
# carries, or, if the board was flashed with a file system, boot.py and main.py in it, after the image's own start-up code.
import json
import sys
import time
from collections import namedtuple

with open(sys.argv[1] + "/board.json") as _file:
    _board = json.load(_file)
    _files, _chip = _board["files"], _board.get("chip")
if _files:
    import vfs

    # The file system of the flash is the root, as on the chip; this machine's lies below it for the board's own modules.
    vfs.umount("/")
    vfs.mount(vfs.VfsPosix(), "/host")
    sys.argv[1:3] = ["/host" + _path for _path in sys.argv[1:3]]
sys.path.insert(0, sys.argv[2])
import esp32  # noqa: E402
import chip  # noqa: E402

# `machine` is built into this port; the board's own goes before it.
sys.modules["machine"] = chip
if _chip:
    # There is otadata, and who looks after it; and a commit to NVS counts as an operation of the flash.
    import othernative

    esp32.Partition = othernative.Partition
    esp32._count.append(True)
    chip.WDT, chip.mem32 = othernative.WDT, othernative.Memory()
if _board.get("uart"):
    from uart import UART

    chip.UART = UART
if _chip:

    class _Sys:
        # This port's sys, but that it is another chip's.
        def __init__(self, real):
            self._real = real
            Implementation = namedtuple("implementation", ("name", "version", "_machine", "_mpy"))
            found = real.implementation
            self.implementation = Implementation(found.name, found.version, _chip, found._mpy)

        def __getattr__(self, name):
            return getattr(self._real, name)

    sys.modules["sys"] = _Sys(sys)
with open(sys.argv[1] + "/program.py") as _file:
    _program = _file.read()


def _mount():
    import network  # noqa: F401  # stays among the loaded modules

    # Machine code for the chip does not run here: the same two modules, compiled for this machine, are loaded in its place.
    sys.path[0] += "/dfu"
    for name in ("zviper", "mviper"):
        sys.modules["dfu." + name] = __import__(name)
        del sys.modules[name]
    sys.path[:] = ["", ".frozen", "/lib"]
    vfs.mount(vfs.VfsLfs2(esp32.Partition.find(esp32.Partition.TYPE_DATA, label="vfs")[0]), "/")


def _run(text):
    exec(text, {"__name__": "__main__"})


def _run_file(name):
    try:
        with open(name) as file:
            text = file.read()
    except OSError:
        return  # there need not be one
    _run(text)


try:
    if _files:
        _mount()
        _run(_program)
        _run_file("boot.py")
        _run_file("main.py")
    else:
        _run(_program)
except (Exception, KeyboardInterrupt) as error:
    # As on the real port: the traceback, then the REPL, which waits for ever.
    sys.print_exception(error)
while True:
    try:
        time.sleep(3600)
    except KeyboardInterrupt:
        print()
