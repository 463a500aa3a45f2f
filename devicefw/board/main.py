# Written by `dfuctl board image`. Everything that can fail runs inside of a guard: the agent's, or, until that is loaded, the one here.
import sys

PAUSE_S = 5


def app():
    import dfuboard

    dfuboard.run()


def load():
    import gc
    import vfs
    from pack import Pack

    # Collected early, the heap stays whole while modules are loaded.
    gc.threshold(4096)
    vfs.mount(Pack("/agent.pack"), "/agent", readonly=True)
    sys.path.insert(0, "/agent")
    import dfu

    return dfu.guard


def lost(error):
    # No agent: a failed start like any other, which the bootloader counts. The pause is somebody's who presses Ctrl-C. See docs/board.md.
    import esp32
    import machine
    import time

    sys.print_exception(error)
    print("board: the agent does not load")
    time.sleep(PAUSE_S)
    if esp32.Partition.find(esp32.Partition.TYPE_DATA, 0x40):
        machine.mem32[0x60008050] = 0xDF0C0001  # RTC STORE0: bootloader/FORMAT.md, "the agent's mark"
    machine.reset()


try:
    guard = load()
except Exception as error:
    lost(error)
guard(app)
