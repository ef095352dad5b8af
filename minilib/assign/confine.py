"""What a process gives up before it runs answers: new processes, sockets, more memory.

Linux only. The filter of system calls is a seccomp program (see seccomp(2)); a process
can't remove it. On other systems, and on other machines than `REFUSED` knows, nothing
refuses these calls.
"""

from __future__ import annotations

import ctypes
import platform
import resource
import struct
from pathlib import Path

MEMORY = 2 * 2**30  # bytes that answers may allocate
CPU_SECONDS = 300  # for one submission
FILE_BYTES = 2**23  # of one file
OPEN_FILES = 64

# numbers of system calls: of fork, vfork, socket, ptrace, process_vm_writev, setsid,
# setpgid, unshare, memfd_create, shmget, io_uring_setup
REFUSED = {
    "x86_64": (57, 58, 41, 101, 311, 112, 109, 272, 319, 29, 425),
    "aarch64": (198, 117, 271, 157, 154, 97, 279, 194, 425),
}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE_THREAD = 0x10000

# a seccomp filter: instructions of the Berkeley Packet Filter and what they return
LOAD, IF_EQUAL, IF_AT_LEAST, IF_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, NO_SUCH_CALL = 0x7FFF0000, 0x00050001, 0x00050026  # EPERM, ENOSYS
CALL, WHERE, FLAGS = 0, 4, 16  # offsets in struct seccomp_data
SET_NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2  # of prctl(2)


def program(machine: str) -> bytes:
    """The filter: no new processes (threads are allowed), no sockets, no way out of the
    process group, no memory that the limits don't count.
    """
    step = lambda code, value, yes=0, no=0: struct.pack("HBBI", code, yes, no, value)
    refused = REFUSED[machine]
    steps = [
        step(LOAD, WHERE),
        step(IF_EQUAL, ARCHITECTURE[machine], yes=1),
        step(RETURN, REFUSE),
        step(LOAD, CALL),
        step(IF_AT_LEAST, 0x40000000, no=1),  # the other numbering of x86, x32
        step(RETURN, REFUSE),
        step(IF_EQUAL, CLONE3, no=1),  # its flags can't be seen: clone is tried next
        step(RETURN, NO_SUCH_CALL),
    ]
    for number in refused:
        steps += [step(IF_EQUAL, number, no=1), step(RETURN, REFUSE)]
    steps += [
        step(IF_EQUAL, CLONE[machine], yes=1),
        step(RETURN, ALLOW),
        step(LOAD, FLAGS),
        step(IF_SET, CLONE_THREAD, no=1),
        step(RETURN, ALLOW),
        step(RETURN, REFUSE),
    ]
    return b"".join(steps)


def filter_calls() -> None:
    """Refuse those system calls from now on, where that is possible."""
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in REFUSED:
        return
    code = program(machine)
    # struct sock_fprog: the number of instructions, and where they are
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 4]
    prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    prctl(SET_SECCOMP, FILTER, ctypes.create_string_buffer(head), 0, 0)


def limit() -> None:
    """Limit memory beyond what is used now, time, and files."""
    limits = {
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    status = Path("/proc/self/statm")
    if status.exists():
        used = int(status.read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = used + MEMORY
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
