// Numbers that are computed at a time, for `winograd.h` and `max_pool.h`.

#ifndef INCEPTION_JAX_LANES_H_
#define INCEPTION_JAX_LANES_H_

#include <cstring>

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// One version of a function per set of instructions; the loader takes that of the processor.
#define PER_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#define INLINE __attribute__((always_inline)) inline

// Lanes, or a float, at any address.
template <typename Value>
INLINE Value Load(const float* from) {
  Value value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename Value>
INLINE void Store(float* to, const Value& value) {
  std::memcpy(to, &value, sizeof(value));
}

#endif  // INCEPTION_JAX_LANES_H_
