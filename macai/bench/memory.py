"""How much memory this process and MLX in it have."""

import ctypes
import ctypes.util
import os
import sys
from pathlib import Path

_RUSAGE_INFO_V0 = 0


class _RusageInfoV0(ctypes.Structure):
    """rusage_info_v0 of macOS: <sys/resource.h>."""

    _fields_ = [
        ("ri_uuid", ctypes.c_uint8 * 16),
        *(
            (name, ctypes.c_uint64)
            for name in (
                "ri_user_time",
                "ri_system_time",
                "ri_pkg_idle_wkups",
                "ri_interrupt_wkups",
                "ri_pageins",
                "ri_wired_size",
                "ri_resident_size",
                "ri_phys_footprint",
                "ri_proc_start_abstime",
                "ri_proc_exit_abstime",
            )
        ),
    ]


def footprint_bytes() -> int | None:
    """Return what the system counts as this process's memory now; None where it does not say.

    Linux: resident pages. macOS: the physical footprint, as Activity Monitor shows it (not run by
    us: there is no Mac here).
    """
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    if sys.platform != "darwin":
        return None
    info = _RusageInfoV0()
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if library.proc_pid_rusage(os.getpid(), _RUSAGE_INFO_V0, ctypes.byref(info)):
        return None
    return int(info.ri_phys_footprint)
