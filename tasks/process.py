"""A name for a process that no other process ever has, whatever the clocks do."""

from pathlib import Path


def identity(pid: int) -> str:
    """Kernel, pid namespace, pid and start in clock ticks since boot, joined by slashes.

    Empty for a process that is not there, and where there is no Linux.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        # The program's name, in parentheses, may hold anything; the state is the first after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{boot}/{namespace}/{pid}/{fields[19]}"
