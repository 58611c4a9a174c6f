// Batch norm, with the ReLU behind it, of bfloat16 maps as rows of channels, and its gradient, for `onednn.cc`:
// `batch_norm_calls.py` says what is computed. All is computed in float32, 16 numbers at a time: every processor with
// products of bfloat16 has AVX-512.

#ifndef INCEPTION_JAX_BATCH_NORM_H_
#define INCEPTION_JAX_BATCH_NORM_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "lanes.h"

#define ON_AVX512 __attribute__((target("avx512f"))) inline

namespace batch_norm {

constexpr int kRows = 64;   // that are summed before they are added to the sums of all before them
constexpr int kGroups = 4;  // vectors of a row that are summed at a time

// Some rows of a map. coefficients: of all channels the factor, then the shift, then, in `Gradient`, what is added and
// what is added per value; null in `SumMoments`.
struct Rows {
  int64_t count, channels;
  const float* coefficients;
  bool relu;

  template <typename Value>
  INLINE void Load(int64_t which, int64_t channel, Value* value) const {
    ::Load(coefficients + which * channels + channel, value);
  }

  // The normalized value, before the ReLU: always computed by this, so that the gradient's ReLU is that of the value.
  template <typename Value>
  INLINE void Scale(int64_t channel, const Value& x, Value* result) const {
    Value factor, shift;
    Load(0, channel, &factor);
    Load(1, channel, &shift);
    *result = x * factor + shift;
  }

  // Keeps of a gradient what passes the ReLU.
  template <typename Value>
  INLINE void Pass(int64_t channel, const Value& x, Value* gradient) const {
    if (!relu) return;
    const Value none{};
    Value value;
    Scale(channel, x, &value);
    *gradient = value > none ? *gradient : none;
  }
};

// Adds to sums [2, channels], over the rows, what add(place, channel, one, other) adds to `one` and `other`.
template <typename Value, int groups, typename Add>
INLINE void SumGroups(const Rows& rows, int64_t channel, const Add& add, float* sums) {
  constexpr int64_t lanes = sizeof(Value) / sizeof(float);
  for (int64_t first = 0; first < rows.count; first += kRows) {
    const int64_t last = std::min<int64_t>(rows.count, first + kRows);
    Value one[groups] = {}, other[groups] = {};
    for (int64_t row = first; row < last; row++)
      for (int group = 0; group < groups; group++)
        add(row * rows.channels + channel + group * lanes, channel + group * lanes, &one[group], &other[group]);
    for (int group = 0; group < groups; group++) {
      float *to = sums + channel + group * lanes, *to_other = to + rows.channels;
      Value sum, other_sum;
      Load(to, &sum);
      Load(to_other, &other_sum);
      sum += one[group];
      other_sum += other[group];
      Store(to, sum);
      Store(to_other, other_sum);
    }
  }
}

template <typename Add>
INLINE void Sum(const Rows& rows, const Add& add, float* sums) {
  std::fill_n(sums, 2 * rows.channels, 0.0f);
  int64_t channel = 0;
  for (; channel + kGroups * kLanes <= rows.channels; channel += kGroups * kLanes)
    SumGroups<Lanes, kGroups>(rows, channel, add, sums);
  for (; channel + kLanes <= rows.channels; channel += kLanes) SumGroups<Lanes, 1>(rows, channel, add, sums);
  for (; channel < rows.channels; channel++) SumGroups<float, 1>(rows, channel, add, sums);
}

// Calls work(type, place, channel) for all elements: `type` is a pointer, to nothing, of Lanes or float.
template <typename Work>
INLINE void ForElements(const Rows& rows, const Work& work) {
  for (int64_t row = 0; row < rows.count; row++) {
    int64_t channel = 0;
    for (; channel + kLanes <= rows.channels; channel += kLanes)
      work(static_cast<Lanes*>(nullptr), row * rows.channels + channel, channel);
    for (; channel < rows.channels; channel++)
      work(static_cast<float*>(nullptr), row * rows.channels + channel, channel);
  }
}

// Sums of the values and of their squares, [2, channels].
ON_AVX512 void SumMoments(const Rows& rows, const uint16_t* x, float* sums) {
  Sum(rows, [&](int64_t place, int64_t, auto* sum, auto* squares) INLINED {
    std::remove_pointer_t<decltype(sum)> value;
    Load(x + place, &value);
    *sum += value;
    *squares += value * value;
  }, sums);
}

// Sums of the gradient that passes the ReLU times the values, and of it alone, [2, channels].
ON_AVX512 void SumGradients(const Rows& rows, const uint16_t* x, const uint16_t* gradient, float* sums) {
  Sum(rows, [&](int64_t place, int64_t channel, auto* products, auto* sum) INLINED {
    std::remove_pointer_t<decltype(sum)> value, given;
    Load(x + place, &value);
    Load(gradient + place, &given);
    rows.Pass(channel, value, &given);
    *products += given * value;
    *sum += given;
  }, sums);
}

ON_AVX512 void Normalize(const Rows& rows, const uint16_t* x, uint16_t* y) {
  ForElements(rows, [&](auto* type, int64_t place, int64_t channel) INLINED {
    std::remove_pointer_t<decltype(type)> value, none{};
    Load(x + place, &value);
    rows.Scale(channel, value, &value);
    if (rows.relu) value = value <= none ? none : value;  // a NaN stays
    Store(y + place, value);
  });
}

ON_AVX512 void Gradient(const Rows& rows, const uint16_t* x, const uint16_t* gradient, uint16_t* result) {
  ForElements(rows, [&](auto* type, int64_t place, int64_t channel) INLINED {
    std::remove_pointer_t<decltype(type)> value, given, factor, added, slope;
    Load(x + place, &value);
    Load(gradient + place, &given);
    rows.Pass(channel, value, &given);
    rows.Load(0, channel, &factor);
    rows.Load(2, channel, &added);
    rows.Load(3, channel, &slope);
    given = given * factor + (value * slope + added);
    Store(result + place, given);
  });
}

}  // namespace batch_norm

#endif  // INCEPTION_JAX_BATCH_NORM_H_
