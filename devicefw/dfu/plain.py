"""The inner loops where there is no viper (another port, or CPython): the same code as plain bytecode."""


def load(file, name, source, wanted):
    """Return the functions `wanted` of the module `source`, which stands beside the module `name` in `file`."""
    path = file.replace(name + ".", source + ".").replace(".mpy", ".py")
    with open(path) as found:
        text = found.read().replace("@micropython.viper\n", "").replace("import micropython\n", "")
    names = {"ptr8": None, "ptr16": None, "ptr32": None, "uint": int}
    exec(text, names)
    return [names[one] for one in wanted]
