"""XLA's flags for quick compilation: most tests compile more than they compute.

Without LLVM's optimization and without the fusions of the CPU, GoogLeNet's gradient takes 1.8 processor seconds, with
these fusions 7.3, with both 16.6 (jaxlib 0.10.2; from 0.11.2 on there are no others). The older fusions compute a value
anew where it is used, once with a fused multiply-add and once without: then an element of a pool's window did not equal
the maximum that it is, and a gradient in float64 was wrong by 2e-4. AVX has no such instruction. One part for the code
generator: the usual 32 are for threads, which two cores do not have, and GoogLeNet's gradient takes a fifth more with
them.
"""

from importlib.metadata import version

from packaging.version import Version

OLDER_FUSIONS = "--xla_cpu_use_fusion_emitters=false" if Version(version("jaxlib")) < Version("0.11.1") else ""
QUICK_COMPILATION = (
    f"--xla_backend_optimization_level=0 --xla_cpu_max_isa=AVX --xla_cpu_parallel_codegen_split_count=1 {OLDER_FUSIONS}"
)
