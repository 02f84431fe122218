"""Flags of XLA for programs that run once: `python tests/xla_flags.py` prints those that the installed jaxlib knows.

Two workers on two cores each want one thread. Nearly all of the suite's time is compilation, and the older of XLA's two
ways to write the code of a kernel takes half of the time of the newer one. jaxlib 0.11 has only the newer one, and XLA
ends a process that names an unknown flag. (Without its passes over loops XLA compiles in three quarters of the time,
but searches for roots of integrals then run five times as long.)
"""

from importlib.metadata import version

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false --xla_cpu_parallel_codegen_split_count=1"
OLDER_KERNELS = "--xla_cpu_use_fusion_emitters=false"


def xla_flags() -> str:
    major, minor = (int(number) for number in version("jaxlib").split(".")[:2])
    return f"{OLDER_KERNELS} {ONE_THREAD}" if (major, minor) < (0, 11) else ONE_THREAD


if __name__ == "__main__":
    print(xla_flags())
