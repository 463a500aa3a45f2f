"""Starts dfud's programs from processes that have imported them already: imports are most of what a short program costs.

`[sys.executable, "-m", "dfud.cli", ...]` becomes a fork of a process that has imported `dfud.cli` and done nothing else
(warm_server.py). It is a process and a child of its own as ever: same entry point, arguments, environment, directory, files,
signals and exit code. Other programs, and whatever asks for something that a fork cannot give, are started as usual.
`pytest --cold` starts everything as usual.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

# What each of them imports. All plugins, since a file that is edited during a run must not meet modules of before.
PLUGINS = ("dfud_http", "dfud_local", "dfud_coap", "dfud_drogue", "dfud_hawkbit")
PROGRAMS: dict[str, tuple[str, ...]] = {
    "dfud.cli": ("dfud.cli.main",),
    "dfud.daemon": ("dfud.daemon.main", "dfud.daemon.init", "dfud.daemon.logs", "dfud.daemon.service", *PLUGINS),
    "dfud.package.worker": ("dfud.package.worker",),
    "esptool": ("esptool",),
}
SERVER = Path(__file__).with_name("warm_server.py")
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
SETTLED = ("PYTHON", "LC_", "LANG", "LD_", "TZ", "MALLOC_", "OPENBLAS_", "OMP_", "OPENSSL_", "SSLKEYLOGFILE")  # read before the fork

_cold = subprocess.Popen
_servers: dict[str, socket.socket] = {}
_began: dict[str, dict[bytes, bytes]] = {}  # what each of them has read of the environment
_lock = threading.Lock()


def _settled(environment: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in environment.items() if name.startswith(tuple(map(os.fsencode, SETTLED)))}


def _server(program: str) -> socket.socket:
    """Return the connection to the process that forks the program; start it if there is none."""
    if program not in _servers:
        ours, theirs = socket.socketpair()
        command = [sys.executable, str(SERVER), str(theirs.fileno()), *PROGRAMS[program]]
        process = _cold(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        theirs.close()
        _servers[program] = ours
        _began[program] = _settled(dict(os.environb))
        atexit.register(_end, process, ours)
    return _servers[program]


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
        server = _server(request["program"])
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
        # A test may have changed this process's own environment since the server of the program began.
        if _settled(environment) != _began.get(args[2], _settled(dict(os.environb))) or not os.path.isdir(cwd):
            return None
        return {
            "program": args[2],
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
