"""Makes a Python on Linux look like one elsewhere, where `PYTHONPATH` has this folder.

There is no /proc and no /dev/shm, no pidfd, no prctl and no SO_PEERCRED, and SIGCHLD does not
arrive. psutil still knows Linux: it has other code for other systems.
"""

# What asks for the platform while it is imported, and has no other code for this system.
import ctypes  # noqa: F401
import multiprocessing.util  # noqa: F401
import os
import signal
import socket
import subprocess  # noqa: F401
import sys
import sysconfig

import psutil  # noqa: F401

sysconfig.get_config_vars()

_ABSENT = ("/proc", "/dev/shm")
_EVENTS = ("open", "os.listdir", "os.scandir")


def _refuse(event, arguments):
    """Have no file in the folders that are absent, but for psutil."""
    if event in _EVENTS and isinstance(path := arguments[0], str) and path.startswith(_ABSENT):
        frame = sys._getframe(1)
        while frame is not None:
            if "psutil" in frame.f_code.co_filename:
                return
            frame = frame.f_back
        raise FileNotFoundError(path)


def _without_children(number, handler, _install=signal.signal):
    """Install a handler, unless it is for the end of children."""
    return _install(number, signal.SIG_DFL if number == signal.SIGCHLD else handler)


def _access(path, *arguments, _real=os.access, **options):
    return not str(path).startswith(_ABSENT) and _real(path, *arguments, **options)


sys.platform = "elsewhere"
del os.pidfd_open, socket.SO_PEERCRED
os.access, signal.signal = _access, _without_children
sys.addaudithook(_refuse)
