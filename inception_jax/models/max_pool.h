// Max pooling of float32 maps NHWC and its gradient, for `onednn.cc`: one pass over a map each.
//
// Of equal values in a window the first, from the top and then from the left, is the largest: it gets the gradient. A
// NaN is larger than all numbers. Windows reach beyond the map, where there is nothing; each has a pixel of it.
// GCC computes selections one element at a time, 7 to 10 times slower, where vectors are not those of the processor's
// instructions or where a mask combines several comparisons.

#ifndef INCEPTION_JAX_MAX_POOL_H_
#define INCEPTION_JAX_MAX_POOL_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "lanes.h"

namespace max_pool {

// The windows of one image.
struct Windows {
  int64_t rows, columns, channels, row_windows, column_windows;
  int64_t size, stride, top, left;  // pixels; `top` and `left` are before the map

  // The pixels of a window along an axis, from `first` up to `end`.
  INLINE static void Range(int64_t window, int64_t stride, int64_t before, int64_t size, int64_t map,
                           int64_t* first, int64_t* end) {
    int64_t start = window * stride - before;
    *first = std::max<int64_t>(start, 0);
    *end = std::min(start + size, map);
  }
};

// Calls work(type, channel) for channels `first` to `last`, which are computed as many as a Vector has or one at a
// time: `type` is a pointer, to nothing, of the type to compute with.
template <typename Vector, typename Work>
INLINE void ForChannels(int64_t first, int64_t last, const Work& work) {
  constexpr int64_t lanes = sizeof(Vector) / sizeof(float);
  for (; first + lanes <= last; first += lanes) work(static_cast<Vector*>(nullptr), first);
  for (; first < last; first++) work(static_cast<float*>(nullptr), first);
}

// Calls visit(window's element, row, column, row's end, column's end) for all windows, from the top and from the left.
template <typename Visit>
INLINE void ForWindows(const Windows& w, const Visit& visit) {
  for (int64_t row = 0; row < w.row_windows; row++)
    for (int64_t column = 0; column < w.column_windows; column++) {
      int64_t top, bottom, left, right;
      Windows::Range(row, w.stride, w.top, w.size, w.rows, &top, &bottom);
      Windows::Range(column, w.stride, w.left, w.size, w.columns, &left, &right);
      visit((row * w.column_windows + column) * w.channels, top, bottom, left, right);
    }
}

template <typename Vector>
INLINE void ForwardBy(const Windows& w, int64_t first, int64_t last, const float* x, float* y) {
  ForWindows(w, [&](int64_t out, int64_t top, int64_t bottom, int64_t left, int64_t right) INLINED {
    ForChannels<Vector>(first, last, [&](auto* type, int64_t channel) INLINED {
      using Value = std::remove_pointer_t<decltype(type)>;
      Value largest, nan{};
      Load(x + (top * w.columns + left) * w.channels + channel, &largest);
      for (int64_t row = top; row < bottom; row++)
        for (int64_t column = left; column < right; column++) {
          Value value;
          Load(x + (row * w.columns + column) * w.channels + channel, &value);
          largest = value > largest ? value : largest;
          nan = value == value ? nan : value;
        }
      Store(y + out + channel, nan == nan ? largest : nan);
    });
  });
}

template <typename Vector>
INLINE void GradientBy(const Windows& w, int64_t first, int64_t last, const float* x, const float* gradient,
                       float* result) {
  for (int64_t pixel = 0; pixel < w.rows * w.columns; pixel++)
    std::fill(result + pixel * w.channels + first, result + pixel * w.channels + last, 0.0f);
  ForWindows(w, [&](int64_t out, int64_t top, int64_t bottom, int64_t left, int64_t right) INLINED {
    ForChannels<Vector>(first, last, [&](auto* type, int64_t channel) INLINED {
      using Value = std::remove_pointer_t<decltype(type)>;
      const Value none{};
      Value given, largest;
      Load(gradient + out + channel, &given);
      Load(x + (top * w.columns + left) * w.channels + channel, &largest);
      Value place{}, number{}, nan_place = none - 1.0f;  // of the largest value among the window's pixels; of a NaN
      for (int64_t row = top; row < bottom; row++)
        for (int64_t column = left; column < right; column++) {
          Value value;
          Load(x + (row * w.columns + column) * w.channels + channel, &value);
          place = value > largest ? number : place;
          largest = value > largest ? value : largest;
          nan_place = value == value ? nan_place : number;
          number += 1.0f;
        }
      place = nan_place < 0.0f ? place : nan_place;
      number = none;
      for (int64_t row = top; row < bottom; row++)
        for (int64_t column = left; column < right; column++) {
          float* to = result + (row * w.columns + column) * w.channels + channel;
          Value sum;
          Load(to, &sum);
          sum += place == number ? given : none;
          Store(to, sum);
          number += 1.0f;
        }
    });
  });
}

// The largest values of the windows, and the gradient of the map, in channels `first` to `last`.
struct Calls {
  void (*forward)(const Windows& w, int64_t first, int64_t last, const float* x, float* y);
  void (*gradient)(const Windows& w, int64_t first, int64_t last, const float* x, const float* gradient,
                   float* result);
};

#define CALLS(name, target, Vector)                                                                              \
  struct name {                                                                                                  \
    target static void Forward(const Windows& w, int64_t first, int64_t last, const float* x, float* y) {        \
      ForwardBy<Vector>(w, first, last, x, y);                                                                   \
    }                                                                                                            \
    target static void Gradient(const Windows& w, int64_t first, int64_t last, const float* x,                   \
                                const float* gradient, float* result) {                                          \
      GradientBy<Vector>(w, first, last, x, gradient, result);                                                   \
    }                                                                                                            \
  }
CALLS(By16, __attribute__((target("avx512f"))), Lanes);
CALLS(By8, __attribute__((target("avx2"))), EightLanes);
CALLS(By4, , FourLanes);
#undef CALLS

// Those for this processor.
inline Calls Find() {
  switch (ProcessorLanes()) {
    case 16: return {By16::Forward, By16::Gradient};
    case 8: return {By8::Forward, By8::Gradient};
    default: return {By4::Forward, By4::Gradient};
  }
}

}  // namespace max_pool

#endif  // INCEPTION_JAX_MAX_POOL_H_
