"""The inner loops where there is no viper (another port, or CPython): the same code as plain bytecode."""

import sys


def load(file, name, source, wanted):
    """Return the functions `wanted` of the module `source`: from dfu.<source>_plain, which stands among compiled modules
    (devicefw/sim/compile.py), or else from the source text beside the module `name` in `file`."""
    plain = "dfu.%s_plain" % source
    try:
        __import__(plain)
        module = sys.modules.pop(plain)  # whoever has its functions keeps them
        return [getattr(module, one) for one in wanted]
    except ImportError:
        pass
    path = file.replace(name + ".", source + ".").replace(".mpy", ".py")
    try:
        with open(path) as found:
            text = found.read()
    except OSError:
        raise ImportError("no viper here, and neither %s.mpy nor %s: copy one of them" % (plain.replace(".", "/"), path))
    names = {"ptr8": None, "ptr16": None, "ptr32": None, "uint": int}
    exec(text.replace("@micropython.viper\n", "").replace("import micropython\n", ""), names)
    return [names[one] for one in wanted]
