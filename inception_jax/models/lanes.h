// Numbers that are computed at a time, for `winograd.h` and `max_pool.h`.

#ifndef INCEPTION_JAX_LANES_H_
#define INCEPTION_JAX_LANES_H_

#include <cstring>

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// One version of a function per set of instructions; the loader takes that of the processor. Another definition, by the
// compiler's command, makes one version alone: to test those of other processors.
#ifndef PER_PROCESSOR
#define PER_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#define INLINE __attribute__((always_inline)) inline

// Lanes, or a float, at any address. Neither takes or returns them by value: Clang refuses that between functions that
// may be compiled for different sets of instructions, even where it inlines them.
template <typename Value>
INLINE void Load(const float* from, Value* value) {
  std::memcpy(value, from, sizeof(*value));
}

template <typename Value>
INLINE void Store(float* to, const Value& value) {
  std::memcpy(to, &value, sizeof(value));
}

#endif  // INCEPTION_JAX_LANES_H_
