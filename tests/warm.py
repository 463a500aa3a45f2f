"""Starts dfud's programs from processes that have imported them already: imports are most of what a short program costs.

`[sys.executable, "-m", "dfud.cli", ...]` becomes a fork of a process that has imported `dfud.cli` and done nothing else
(warm_server.py). It is a process and a child of its own as ever: same entry point, arguments, environment, directory, files,
signals and exit code. Other programs, and whatever asks for something that a fork cannot give, are started as usual.
`pytest --cold` starts everything as usual.

`python -m tests.warm MODULE ARGUMENT...` runs a module as `python -m` does, and what it starts in this way.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import runpy
import shlex
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

# What each of them imports. All plugins, since a file that is edited during a run must not meet modules of before.
PLUGINS = ("dfud_http", "dfud_local", "dfud_coap", "dfud_drogue", "dfud_hawkbit", "dfud_postgres.store", "dfud_s3.place")
CLIENT = ("httpx", "httpcore", "certifi", "trio", "anyio._backends._trio")  # what httpx imports with its first request
PROGRAMS: dict[str, tuple[str, ...]] = {
    "dfud.cli": ("dfud.cli.main", *CLIENT),
    "dfud.cli package": ("dfud.cli.main", "dfud.cli.package", "dfud.cli.board"),  # NumPy and what compresses, for those that need it
    "dfud.daemon": ("dfud.daemon.main", "dfud.daemon.init", "dfud.daemon.logs", "dfud.daemon.service", *PLUGINS),
    "dfud.package.worker": ("dfud.package.worker",),
    "esptool": ("esptool",),
}
ROOT = Path(__file__).parents[1]
SERVER = Path(__file__).with_name("warm_server.py")
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
SETTLED = ("PYTHON", "LC_", "LANG", "LD_", "TZ", "MALLOC_", "OPENBLAS_", "OMP_", "OPENSSL_", "SSLKEYLOGFILE")  # read before the fork

_cold = subprocess.Popen
Settled = frozenset[tuple[bytes, bytes]]  # what an interpreter reads of the environment once and for all
_servers: dict[tuple[str, Settled], socket.socket] = {}
_lock = threading.Lock()


def _settled(environment: dict[bytes, bytes]) -> Settled:
    return frozenset(one for one in environment.items() if one[0].startswith(tuple(map(os.fsencode, SETTLED))))


def _server(program: str, environment: dict[bytes, bytes]) -> socket.socket:
    """Return the connection to the process that forks the program in such an environment; start it if there is none."""
    key = (program, _settled(environment))
    if key not in _servers:
        ours, theirs = socket.socketpair()
        command = [sys.executable, str(SERVER), str(theirs.fileno()), *PROGRAMS[program]]
        ours_too = set(os.environb.items()) - _settled(dict(os.environb))
        process = _cold(
            command,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=dict([*ours_too, *key[1]]),
            cwd=ROOT,
        )
        theirs.close()
        _servers[key] = ours
        atexit.register(_end, process, ours)
    return _servers[key]


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.wait()


def _adopt(on: bool) -> None:
    """Make grandchildren that lose their parent our children: those that are forked meanwhile."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def fork(request: dict[str, Any], files: list[int]) -> int:
    """Have a program forked; return the number of the process, a child of this one."""
    data = pickle.dumps(request)
    with _lock:
        server = _server(request["server"], request["environment"])
        _adopt(True)
        try:
            socket.send_fds(server, [struct.pack("<I", len(data))], files)
            server.sendall(data)
            answer = server.recv(4, socket.MSG_WAITALL)
        finally:
            _adopt(False)
    if len(answer) < 4:
        raise OSError(f"the process that forks {request['program']} has ended")
    return int(struct.unpack("<i", answer)[0])


# What subprocess.Popen hands to _execute_child behind the arguments and the executable (CPython 3.11).
NAMES = (
    *("preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell"),
    *("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"),
    *("restore_signals", "gid", "gids", "uid", "umask", "start_new_session", "process_group"),
)
ENDS = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen, with a quicker start of the programs above."""

    def _execute_child(self, args: Any, executable: Any, *rest: Any) -> None:
        asked = dict(zip(NAMES, rest, strict=True))
        request = self._request(args, executable, asked)
        if request is None:
            super()._execute_child(args, executable, *rest)  # type: ignore[misc]
            return
        own = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        self.pid = fork(request, [inherited if file == -1 else file for inherited, file in enumerate(own)])
        self._child_created = True
        self._close_pipe_fds(*(asked[name] for name in ENDS))  # type: ignore[attr-defined]

    def _request(self, args: Any, executable: Any, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Return what to send for these arguments, or None if it is no case for a fork."""
        if not isinstance(args, list | tuple) or list(args[:2]) != [sys.executable, "-m"] or executable not in (None, args[0]):
            return None
        if len(args) < 3 or args[2] not in PROGRAMS or asked["umask"] >= 0 or asked["process_group"] not in (None, -1):
            return None
        if not asked["close_fds"] or any(asked[name] for name in ("preexec_fn", "pass_fds", "shell")):
            return None
        if any(asked[name] is not None for name in ("gid", "gids", "uid")):
            return None
        given = os.environb if asked["env"] is None else asked["env"]
        environment = {os.fsencode(name): os.fsencode(value) for name, value in given.items()}
        cwd = os.fspath(asked["cwd"] or os.getcwd())
        if not os.path.isdir(cwd):
            return None
        return {
            "program": args[2],
            "server": "dfud.cli package" if args[2] == "dfud.cli" and {"package", "board"} & set(args) else args[2],
            # Whether its end can be cut short. Not that of a daemon and its workers: an interpreter full of threads must come to one.
            "short": args[2] in ("dfud.cli", "esptool") or list(args[2:4]) == ["dfud.daemon", "init"],
            "arguments": [os.fspath(each) for each in args],
            "environment": environment,
            "cwd": cwd,
            "session": asked["start_new_session"],
        }


def install() -> None:
    """From now on, subprocess.Popen is the one above, for all who use it."""
    subprocess.Popen = Popen  # type: ignore[misc]


def remove() -> None:
    subprocess.Popen = _cold  # type: ignore[misc]


def module(*arguments: str) -> list[str]:
    """Return a command that runs `python -m` of these arguments; what that starts in turn is forked, if it is here."""
    return [sys.executable, "-m", *(("tests.warm",) if subprocess.Popen is Popen else ()), *arguments]


def typed(line: str) -> list[str]:
    """Return the command for a line that a user types: a plain dfuctl is forked, and what takes a shell gets one."""
    words = shlex.split(line)
    if words[0] != "dfuctl" or set(line) & set("|&;<>()$`\\*?[#~\n"):
        return ["sh", "-c", line]
    return [sys.executable, "-m", "dfud.cli", *words[1:]]


if __name__ == "__main__":
    install()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
