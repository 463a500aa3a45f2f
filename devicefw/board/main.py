# Written by `dfuctl board image`. Everything that can fail runs inside of the guard.
import gc
import sys
import vfs
from pack import Pack

# Collected early, the heap stays whole while modules are loaded.
gc.threshold(4096)
vfs.mount(Pack("/agent.pack"), "/agent", readonly=True)
sys.path.insert(0, "/agent")
import dfu


def app():
    import dfuboard

    dfuboard.run()


dfu.guard(app)
