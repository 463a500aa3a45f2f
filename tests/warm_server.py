"""`python warm_server.py SOCKET MODULE...`: imports the modules, then forks one process for each request until the socket closes.

May not start threads, nor do anything that a program would not find done after its own imports. Protocol (warm.py is the
client): length of the request and three files, the request as a pickle; the answer is the number of the process.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import os
import pickle
import runpy
import socket
import struct
import sys
import threading
from typing import Any, TextIO


def serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return in the child, with what to run; in the parent when nobody is left to ask, with None."""
    while True:
        head, files, _, _ = socket.recv_fds(connection, 4, 3)
        if len(head) < 4:
            return None
        size = struct.unpack("<I", head)[0]
        data = b""
        while len(data) < size:
            data += connection.recv(size - len(data))
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            # The one between ends at once: its child is adopted by whoever asked.
            number = os.fork()
            if number == 0:
                return pickle.loads(data), files
            os.write(write, struct.pack("<i", number))
            os._exit(0)
        os.close(write)
        answer = os.read(read, 4)
        os.close(read)
        os.waitpid(between, 0)
        for file in files:
            os.close(file)
        connection.sendall(answer)


def text(file: int, mode: str, like: TextIO) -> io.TextIOWrapper:
    """Return what Python makes of a standard file at its start."""
    writes = mode == "w"
    unbuffered = writes and bool(os.environ.get("PYTHONUNBUFFERED"))
    raw = open(file, mode + "b", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115  # for good
    made = io.TextIOWrapper(
        raw,
        like.encoding,
        like.errors,
        newline="\n" if writes else None,
        line_buffering=writes and (like is sys.stderr or os.isatty(file)),
        write_through=unbuffered,
    )
    made.mode = mode  # type: ignore[misc]  # as Python does
    return made


def become(request: dict[str, Any], files: list[int]) -> None:
    """Make this process what a new one would be that was asked for."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 1 << 16)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    for name in set(os.environb) - set(request["environment"]):
        del os.environb[name]
    os.environb.update(request["environment"])
    sys.stdin, sys.stdout, sys.stderr = text(0, "r", sys.stdin), text(1, "w", sys.stdout), text(2, "w", sys.stderr)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.orig_argv = request["arguments"]
    sys.argv = ["-m", *request["arguments"][3:]]
    sys.path[0] = os.getcwd()


def end(code: object) -> None:
    """End as Python does after SystemExit, but without taking everything down: that copies most of the memory that is shared with
    the parent, and takes longer than most short programs."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for file in (sys.stdout, sys.stderr):
            if not file.closed:
                file.flush()
    except OSError:
        return  # Python says so, and ends with another code
    os._exit((code or 0) & 0xFF)


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    sys.path[0] = os.getcwd()
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    asked = serve(connection)
    if asked is None:
        return
    connection.detach()
    request, files = asked
    become(request, files)
    if not hasattr(sys.modules[request["program"]], "__path__"):
        del sys.modules[request["program"]]  # or Python warns of a module that stands twice
    code: object = None
    try:
        runpy.run_module(request["program"], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
        if not request["short"]:
            raise
    if request["short"]:
        end(code)


main()
