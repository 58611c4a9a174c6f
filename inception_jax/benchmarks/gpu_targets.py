"""Descriptions of NVIDIA GPUs that XLA compiles for without one: the text of its message `GpuTargetConfigProto`.

XLA reads from it how many threads, registers and bytes a kernel may have, and what its models of cost take; it measures
nothing, so convolutions get cuDNN's default algorithm. Sources of the numbers:

* limits of a block and of a multiprocessor by compute capability (threads, registers, shared memory, units): CUDA C++
  Programming Guide, "Technical Specifications per Compute Capability";
* multiprocessors and L2 cache: white papers "NVIDIA A100 Tensor Core GPU Architecture" (2020) and "NVIDIA H100 Tensor
  Core GPU Architecture" (2022); an H200 is an H100 SXM with other memory (data sheet);
* bandwidth: data sheets, as in `hardware.CHIPS`;
* highest clock, and bytes of memory as the driver counts them: the files a100_sxm_80.txtpb, h100_sxm.txtpb and
  h200.txtpb in xla/backends/gpu/target_config/specs of github.com/openxla/xla.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ComputeCapability:
    """What all GPUs of a compute capability have in common.

    Attributes:
      major: of the version; the minor one is 0 for all that are described here.
      float32_units: per multiprocessor.
      shared_kilobytes: shared memory of a multiprocessor; one of them is the system's in each block.
      accelerated: whether XLA takes the instructions that later GPUs need not have (sm_90a).
    """

    major: int
    float32_units: int
    shared_kilobytes: int
    accelerated: bool


AMPERE = ComputeCapability(8, 64, 164, accelerated=False)
HOPPER = ComputeCapability(9, 128, 228, accelerated=True)


@dataclasses.dataclass(frozen=True)
class GpuTarget:
    """One GPU; the module's docstring names the sources.

    Attributes:
      device_kind: its name, as `jax.Device.device_kind` is on such a GPU.
      capability: its compute capability.
      multiprocessors: number of streaming multiprocessors.
      l2_bytes: L2 cache.
      clock_ghz: highest clock of the multiprocessors.
      memory_bytes: as the driver counts them.
      bandwidth: of the memory, bytes/s.
    """

    device_kind: str
    capability: ComputeCapability
    multiprocessors: int
    l2_bytes: int
    clock_ghz: float
    memory_bytes: int
    bandwidth: float

    def text(self, cudnn: tuple[int, int, int]) -> str:
        """The message as text.

        Args:
          cudnn: version of cuDNN that the program will run with.
        """
        shared = self.capability.shared_kilobytes * 1024
        extension = "ACCELERATED_FEATURES" if self.capability.accelerated else "NONE"
        major, minor, patch = cudnn
        return f"""gpu_device_info {{
  name: "{self.device_kind}" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {self.capability.major} feature_extension: {extension} }}
  core_count: {self.multiprocessors} fpus_per_core: {self.capability.float32_units} clock_rate_ghz: {self.clock_ghz}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: {48 * 1024} shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared - 1024}
  l2_cache_size: {self.l2_bytes} device_memory_size: {self.memory_bytes} memory_bandwidth: {self.bandwidth:.0f}
  dnn_version: "{major}.{minor}.{patch}" device_address_bits: 64 ecc_enabled: true
}}
platform_name: "CUDA"
dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
device_description_str: "{self.device_kind}"
"""


GPU_TARGETS = {
    "h200": GpuTarget("NVIDIA H200", HOPPER, 132, 50 * 2**20, 1.98, 151_397_597_184, 4.8e12),
    "h100": GpuTarget("NVIDIA H100 80GB HBM3", HOPPER, 132, 50 * 2**20, 1.98, 84_942_979_072, 3.35e12),
    "a100": GpuTarget("NVIDIA A100-SXM4-80GB", AMPERE, 108, 40 * 2**20, 1.41, 85_100_068_864, 2.039e12),
}
