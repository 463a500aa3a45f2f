# Started on MicroPython in place of boot.py and main.py: the board's modules first, then the image's program.
import sys
import time


class Module:
    pass


def load(name):
    # `machine` is built into this port; the board's own goes before it.
    with open(sys.argv[2] + "/shims/" + name + ".py") as file:
        scope = {"__name__": name}
        exec(file.read(), scope)
    module = Module()
    for key in scope:
        setattr(module, key, scope[key])
    sys.modules[name] = module


load("esp32")
load("machine")
sys.path.insert(0, sys.argv[3])
try:
    with open(sys.argv[1] + "/program.py") as _file:
        exec(_file.read(), {"__name__": "__main__"})
except Exception as error:
    # As on the real port: the traceback, then the REPL, which waits for ever.
    sys.print_exception(error)
while True:
    time.sleep(3600)
