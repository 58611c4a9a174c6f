// Numbers that are computed at a time, for `winograd.h` and `max_pool.h`.

#ifndef INCEPTION_JAX_LANES_H_
#define INCEPTION_JAX_LANES_H_

#include <cstdint>
#include <cstring>

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef float EightLanes __attribute__((vector_size(8 * sizeof(float))));
typedef float FourLanes __attribute__((vector_size(4 * sizeof(float))));

// One version of a function per set of instructions; the loader takes that of the processor. TEST_TARGET, in the
// compiler's command, makes that version alone: to test those of other processors.
#ifdef TEST_TARGET
#define PER_PROCESSOR __attribute__((target(TEST_TARGET)))
#else
#define PER_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#define INLINE __attribute__((always_inline)) inline
#define INLINED __attribute__((always_inline))  // of a lambda, behind its parameters

// How many numbers a vector of this processor holds: 16, 8 or 4.
inline int ProcessorLanes() {
#ifdef TEST_TARGET
  const bool has_16 = !std::strcmp(TEST_TARGET, "avx512f"), has_8 = !std::strcmp(TEST_TARGET, "avx2");
#else
  const bool has_16 = __builtin_cpu_supports("avx512f"), has_8 = __builtin_cpu_supports("avx2");
#endif
  return has_16 ? 16 : has_8 ? 8 : 4;
}

// Lanes, or a float, at any address of floats, or of bfloat16: the upper 16 bits of a float. None takes or returns them
// by value: Clang refuses that between functions that may be compiled for different sets of instructions, even where it
// inlines them.
template <typename Value>
INLINE void Load(const float* from, Value* value) {
  std::memcpy(value, from, sizeof(*value));
}

template <typename Value>
INLINE void Store(float* to, const Value& value) {
  std::memcpy(to, &value, sizeof(value));
}

// Integers of 32 and 16 bits, as many as a Value has floats.
template <typename Value>
struct Bits {
  typedef uint32_t Wide __attribute__((vector_size(sizeof(Value))));
  typedef uint16_t Narrow __attribute__((vector_size(sizeof(Value) / 2)));
};
template <>
struct Bits<float> {
  typedef uint32_t Wide;
  typedef uint16_t Narrow;
};

template <typename Value>
INLINE void Load(const uint16_t* from, Value* value) {
  typename Bits<Value>::Narrow narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  typename Bits<Value>::Wide wide;
  if constexpr (sizeof(wide) == sizeof(uint32_t))
    wide = narrow;
  else
    wide = __builtin_convertvector(narrow, typename Bits<Value>::Wide);
  wide <<= 16;
  std::memcpy(value, &wide, sizeof(wide));
}

// Rounds to nearest, ties to even. A NaN stays one if one of the upper 16 bits of its fraction is set.
template <typename Value>
INLINE void Store(uint16_t* to, const Value& value) {
  typename Bits<Value>::Wide wide;
  std::memcpy(&wide, &value, sizeof(wide));
  wide += 0x7fff + (wide >> 16 & 1);
  wide >>= 16;
  typename Bits<Value>::Narrow narrow;
  if constexpr (sizeof(wide) == sizeof(uint32_t))
    narrow = static_cast<uint16_t>(wide);
  else
    narrow = __builtin_convertvector(wide, typename Bits<Value>::Narrow);
  std::memcpy(to, &narrow, sizeof(narrow));
}

#endif  // INCEPTION_JAX_LANES_H_
