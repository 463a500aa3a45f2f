# What viper makes of the mapped delta's inner loops on a 32-bit chip: every number a signed word that wraps, every load of a word signed.
# vcheck.py with a third argument runs with it, under CPython.
import sys
from array import array

ALL = 0xFFFFFFFF


class Word(int):
    def __new__(cls, value):
        value &= ALL
        return int.__new__(cls, value - (1 << 32) if value >> 31 else value)


def _wrapped(operation):
    def wrapped(self, other):
        return Word(operation(int(self), int(other)))

    return wrapped


for _name in ("add", "sub", "mul", "and", "or", "xor", "lshift", "rshift"):
    for _side in ("", "r"):
        setattr(Word, f"__{_side}{_name}__", _wrapped(getattr(int, f"__{_side}{_name}__")))


class Words(array):
    """A store keeps the low 32 bits."""

    def __setitem__(self, key, value):
        array.__setitem__(self, key, int(value) & ALL)


def install():
    import dfu.mapped
    import dfu.table

    names = {"ptr8": None, "ptr32": None, "int": Word, "uint": lambda value: int(value) & ALL}
    with open(sys.argv[1] + "/dfu/mviper.py") as file:
        exec(file.read().replace("@micropython.viper\n", "").replace("import micropython\n", ""), names)
    dfu.mapped.view, dfu.mapped.form, dfu.table.array = names["view"], names["form"], Words
