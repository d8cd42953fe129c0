"""What becomes of the memory that a step has freed."""

import ctypes

#: By mallopt(3), of glibc: each setting's number, and its value in bytes.
KEPT = {"MMAP_THRESHOLD": (-3, 2**30), "TRIM_THRESHOLD": (-1, 2**31 - 1)}

#: The same for a process that is still to be started.
ENVIRONMENT = {f"MALLOC_{name}_": str(size) for name, (_, size) in KEPT.items()}


def keep_freed_memory() -> bool:
    """Have the C library keep what a step frees for the next step; whether it does.

    Left to itself glibc gives large pieces back to the system, and asks for them again, page by page, in the next step. That was
    15 % of the time in which a ResNet-8 learned on a CPU. A process then holds the most that it has ever needed, which is for a
    program to decide (``kdlab``'s commands, the chapters, the tests) and not for a library. Other C libraries go on as before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(number, size) == 1 for number, size in KEPT.values())
