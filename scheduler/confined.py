"""Runs a program that reads what strangers wrote: within limits, and blind to the machine it runs on.

    python3 -I -S confined.py DIRECTORY PROGRAM ARGUMENT...

The program reads and writes below DIRECTORY only, and reads what programs need to start; it opens no TCP connection.
Bento's lint, for one, follows `import "/any/path"` and quotes what it finds there in its complaint, which its author
reads in a status. Limits: processor time, memory that is its own, size of files, no core dump.

A script of its own, because all of this has to happen between fork and exec, where a process with threads must not run
Python. Standard library only. Landlock needs Linux 5.13 and is part of the kernels of all current distributions; where
it is missing, the limits hold and the files of the machine can be read as its user can read them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import sys

CPU_S = 60  # across all threads; the caller's time-out is by the clock
DATA_BYTES = 4 * 1024**3  # the Go runtime is told to stay far below; this ends what does not
FILE_BYTES = 64 * 1024**2

# What programs need to start: interpreters, libraries, the linker's cache. Nothing secret lies there.
PROGRAMS = ("/usr/bin", "/usr/lib", "/usr/lib64", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null")

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PR_SET_NO_NEW_PRIVS = 38
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14
# By version of Landlock: how many rights on files there are.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_TCP = 3  # bind and connect, from version 4 on


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("directory", ctypes.c_int32))


def limit() -> None:
    """Set the limits of this process and all that it becomes."""
    for what, most in (
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_DATA, DATA_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (value, value))


def landlock_version() -> int:
    """Of the Landlock that the running kernel has; below 1: it has none, or it is switched off."""
    return int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, 1))


def confine(directory: str, program: str) -> bool:
    """Let this process see `directory`, and what is needed to start `program`. False: this kernel cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = landlock_version()
    if version < 1:
        return False
    rights = (1 << _RIGHTS.get(version, 15)) - 1
    ruleset = _Ruleset(rights, _TCP)
    size = 16 if version >= 4 else 8
    descriptor = libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    if descriptor < 0:
        return False
    _allow(libc, descriptor, directory, rights)
    for path in (*PROGRAMS, program, os.path.realpath(program)):
        _allow(libc, descriptor, path, _EXECUTE | _READ_FILE | _READ_DIR)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.syscall(_RESTRICT_SELF, descriptor, 0) == 0)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= _OF_FILES
    rule = _PathBeneath(rights, place)
    libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(place)


def main() -> None:
    """Become the program."""
    directory, program, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
    limit()
    confine(directory, program)
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
