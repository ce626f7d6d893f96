"""Enter a jail of Linux namespaces, then play one of two parts. Run as a script; imports the standard library only.

    sandbox.py ── starts ──> jail(candidate)   runs the untrusted program; holds one end of a socket, nothing else
               └─ starts ──> jail(checker)     runs the tests; holds the other end, and the pipe of the verdict

What lives here: namespaces, mounts, identity and limits. What does not: what is said over the socket (`sandbox_wire`,
`sandbox_candidate`, `sandbox_checker`) and when to stop (`sandbox`). The process that starts here stays outside as a
warden and forks the prisoner, which is process 1 of its own process namespace: killing it kills all that it started.

The new root is an empty tmpfs, read-only once built, that holds the interpreter's library folders, `/dev/null` and
`/dev/urandom`, and one small writable tmpfs at `/tmp`. There is no `/proc`, no network interface, no home, no project.

Sources: namespaces(7), user_namespaces(7), pivot_root(2), mount_setattr(2), capabilities(7), getrlimit(2). Needs
Linux 5.14: since then RLIMIT_NPROC counts within a user namespace, and mounts turn read-only recursively (5.12).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.util
import json
import math
import os
import resource
import signal
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
SYS_MOUNT_SETATTR = 442
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
LINUX_CAPABILITY_VERSION_3 = 0x20080522

TRANSIENT_UIDS = range(61184, 65520)
"""Ids that no account has: systemd's range for users that exist only while a service runs."""
INNER_UID = 1000
SETUP_FAILED = 125
MAX_INHERITED_FDS = 256
"""This script runs in a fresh interpreter that was handed at most six descriptors."""

_libc = ctypes.CDLL(None, use_errno=True)


class JailError(Exception):
    """A step of the set-up was refused by the kernel."""


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def _checked(step: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise JailError(f"{step}: {os.strerror(number)} (errno {number})")


def _mount(source: str, target: str, kind: str, *, flags: int, options: str = "") -> None:
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _checked(f"mount {kind or 'bind'} {target}", result)


def _make_read_only(path: str, *, attributes: int, reach: int = AT_RECURSIVE) -> None:
    """Turn a mount and, unless `reach` is 0, all mounts under it read-only; a remount could reach one alone."""
    attr = _MountAttr(attr_set=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | attributes)
    result = _libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), reach, ctypes.byref(attr), ctypes.sizeof(attr))
    _checked(f"mount_setattr {path}", result)


def _holds_all_ids() -> bool:
    """Whether this process is a root that may become one of `TRANSIENT_UIDS` (not so in a rootless container)."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map") as lines:
        for line in lines:
            inner, _, count = (int(part) for part in line.split())
            if inner <= TRANSIENT_UIDS.start and inner + count >= TRANSIENT_UIDS.stop:
                return True
    return False


def _enter_namespaces(*, transient: int) -> bool:
    """Leave the host's namespaces. Returns whether it was done as root, which then has to drop that identity.

    A root without CAP_SYS_ADMIN (a container's default) becomes `transient` first and goes the way of any other user.
    """
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    if _holds_all_ids():
        if _libc.unshare(flags) == 0:
            return True
        if ctypes.get_errno() != errno.EPERM:
            _checked("unshare", -1)
        _become(transient)
        _checked("dumpable", _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))  # or /proc/self/uid_map belongs to root
    uid, gid = os.geteuid(), os.getegid()
    _checked("unshare with a user namespace", _libc.unshare(flags | CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{INNER_UID} {uid} 1"), ("gid_map", f"{INNER_UID} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return False


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _library_folders() -> list[str]:
    """Return folders that the interpreter still needs once it runs, outermost only."""
    wanted = [path for path in sys.path if os.path.isdir(path)]
    wanted += [os.path.join(sys.base_prefix, name) for name in ("lib", sys.platlibdir)]
    wanted += ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    kept: list[str] = []
    for path in sorted({os.path.abspath(path) for path in wanted}):
        if os.path.isdir(path) and not any(path.startswith(parent + "/") for parent in kept):
            kept.append(path)
    return kept


def _build_root(*, tmp_bytes: int) -> None:
    """Replace the file system by a read-only one that holds what `_library_folders` names, and a private `/tmp`."""
    folders = _library_folders()
    _mount("none", "/", "", flags=MS_REC | MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", flags=MS_NOSUID | MS_NODEV, options="mode=0755,size=1m,nr_inodes=4k")
    os.mkdir("/tmp/host")
    _checked("pivot_root", _libc.pivot_root(b"/tmp", b"/tmp/host"))
    os.chdir("/")
    for folder in folders:
        if os.path.islink("/host" + folder) and os.path.dirname(folder) == "/":
            os.symlink(os.readlink("/host" + folder), folder)
            continue
        os.makedirs(folder, exist_ok=True)
        _mount(_resolved(folder), folder, "", flags=MS_BIND | MS_REC)
        _make_read_only(folder, attributes=MOUNT_ATTR_NODEV)
    os.mkdir("/dev")
    for device in ("/dev/null", "/dev/urandom"):
        os.close(os.open(device, os.O_CREAT | os.O_WRONLY, 0o600))
        _mount("/host" + device, device, "", flags=MS_BIND)
        _make_read_only(device, attributes=MOUNT_ATTR_NOEXEC)
    os.mkdir("/tmp")
    _checked("umount of the host", _libc.umount2(b"/host", MNT_DETACH))
    os.rmdir("/host")
    _make_read_only("/", attributes=MOUNT_ATTR_NODEV, reach=0)
    options = f"mode=1777,size={tmp_bytes},nr_inodes=1k"
    _mount("tmpfs", "/tmp", "tmpfs", flags=MS_NOSUID | MS_NODEV | MS_NOEXEC, options=options)
    os.chdir("/tmp")


def _resolved(folder: str) -> str:
    """Follow a path's links below `/host`, where an absolute link means the host's root."""
    parts, path = [part for part in folder.split("/") if part], ""
    for _ in range(1000):
        if not parts:
            return "/host" + path
        step = f"{path}/{parts.pop(0)}"
        if not os.path.islink("/host" + step):
            path = os.path.normpath(step)
            continue
        link = os.readlink("/host" + step)
        base = "" if link.startswith("/") else path
        parts, path = [part for part in os.path.normpath(f"{base}/{link}").split("/") if part] + parts, ""
    raise JailError(f"too many links in {folder}")


def _limit(limits: dict[str, Any], *, as_root: bool) -> None:
    """Set the hard limits of the prisoner. A user namespace counts the warden too, so it adds one there."""
    for which, value in (
        (resource.RLIMIT_CPU, max(1, math.ceil(limits["cpu_seconds"]))),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"] + (0 if as_root else 1)),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 64),
    ):
        hard = resource.getrlimit(which)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bound, bound))


def _drop_privileges(*, as_root: bool, transient: int) -> None:
    """Give up root's identity and every capability, for good."""
    if as_root:
        _become(transient)
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _checked("capset", _libc.capset(header, nothing))
    _checked("no_new_privs", _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _prove_process_limit(*, as_root: bool) -> None:
    """Fork once more than a limit of one process allows. The kernel exempts its own root, under whatever name."""
    bound, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1 if as_root else 2, hard))
    try:
        child = os.fork()
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, (bound, hard))
        return
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    raise JailError("the limit on processes does not hold, because this is the machine's root inside a user namespace")


def _close_others(keep: set[int]) -> None:
    for descriptor in range(MAX_INHERITED_FDS):
        if descriptor not in keep:
            with contextlib.suppress(OSError):  # most of them are not open
                os.close(descriptor)


def _load(folder: str, name: str) -> Any:
    """Load a file of the sandbox by its path while it can be seen: the project's folder must not become importable."""
    full_name = f"tunesmith.evals.{name}"
    spec = importlib.util.spec_from_file_location(full_name, os.path.join(folder, f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    spec.loader.exec_module(module)
    return module


def _warden(prisoner: int) -> int:
    """Wait for the prisoner; on SIGTERM kill it first. Returns its exit status as a shell would."""

    def stop(*_: object) -> None:
        os.kill(prisoner, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # again: a change of identity clears it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _, status = os.waitpid(prisoner, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main() -> None:
    """Read the order from argv, build the jail, run the part."""
    order = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    status, channel, verdict = order["status_fd"], order["channel_fd"], order.get("verdict_fd")
    try:
        _load(order["folder"], "sandbox_wire")
        part = _load(order["folder"], f"sandbox_{order['part']}")
        with open(0, "rb", closefd=False) as stdin:
            parcel = json.loads(stdin.read())
        transient = TRANSIENT_UIDS[os.getpid() % len(TRANSIENT_UIDS)]
        as_root = _enter_namespaces(transient=transient)
        _build_root(tmp_bytes=order["limits"]["tmp_bytes"])
        prisoner = os.fork()
    except (JailError, OSError) as error:
        os.write(status, str(error).encode())
        os._exit(SETUP_FAILED)
    if prisoner:
        _close_others({0, 1, 2})
        os._exit(_warden(prisoner))
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        _limit(order["limits"], as_root=as_root)
        _drop_privileges(as_root=as_root, transient=transient)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _prove_process_limit(as_root=as_root)
        os.write(status, b"ready")
        _close_others({0, 1, 2, channel, *([verdict] if verdict is not None else [])})
    except (JailError, OSError, ValueError) as error:
        os.write(status, str(error).encode())
        os._exit(SETUP_FAILED)
    sys.argv = ["candidate"]
    if order["part"] == "checker":
        part.check(channel, verdict, parcel)
    else:
        part.obey(channel, parcel)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
