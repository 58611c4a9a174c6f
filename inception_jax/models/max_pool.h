// Max pooling of float32 or bfloat16 maps NHWC and its gradient, for `onednn.cc`: one pass over a map each. Gradients
// are added in float32.
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

template <typename Vector, typename Element>
INLINE void ForwardBy(const Windows& w, int64_t first, int64_t last, const Element* x, Element* y) {
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

// sums: `size` rows [w.columns, last - first]: the rows of the map that a row of windows has, each at its number modulo
// `size`.
template <typename Vector, typename Element>
INLINE void GradientBy(const Windows& w, int64_t first, int64_t last, const Element* x, const Element* gradient,
                       Element* result, float* sums) {
  const int64_t count = last - first, row_size = w.columns * count;
  std::fill_n(sums, w.size * row_size, 0.0f);
  int64_t finished = 0;
  auto finish_before = [&](int64_t row) INLINED {  // no later window has these rows
    for (; finished < row; finished++) {
      float* from = sums + finished % w.size * row_size;
      for (int64_t column = 0; column < w.columns; column++, from += count)
        ForChannels<Vector>(first, last, [&](auto* type, int64_t channel) INLINED {
          std::remove_pointer_t<decltype(type)> sum, none{};
          Load(from + channel - first, &sum);
          Store(result + (finished * w.columns + column) * w.channels + channel, sum);
          Store(from + channel - first, none);
        });
    }
  };
  ForWindows(w, [&](int64_t out, int64_t top, int64_t bottom, int64_t left, int64_t right) INLINED {
    finish_before(top);
    const int64_t top_place = top % w.size;
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
      for (int64_t row = 0; row < bottom - top; row++) {
        const int64_t row_place = top_place + row < w.size ? top_place + row : top_place + row - w.size;
        for (int64_t column = left; column < right; column++) {
          float* to = sums + row_place * row_size + column * count + channel - first;
          Value sum;
          Load(to, &sum);
          sum += place == number ? given : none;
          Store(to, sum);
          number += 1.0f;
        }
      }
    });
  });
  finish_before(w.rows);
}

// The largest values of the windows, and the gradient of the map, in channels `first` to `last`.
template <typename Element>
struct Calls {
  void (*forward)(const Windows& w, int64_t first, int64_t last, const Element* x, Element* y);
  void (*gradient)(const Windows& w, int64_t first, int64_t last, const Element* x, const Element* gradient,
                   Element* result, float* sums);
};

#define CALLS(name, target, Vector)                                                                               \
  template <typename Element>                                                                                     \
  struct name {                                                                                                   \
    target static void Forward(const Windows& w, int64_t first, int64_t last, const Element* x, Element* y) {     \
      ForwardBy<Vector>(w, first, last, x, y);                                                                    \
    }                                                                                                             \
    target static void Gradient(const Windows& w, int64_t first, int64_t last, const Element* x,                  \
                                const Element* gradient, Element* result, float* sums) {                          \
      GradientBy<Vector>(w, first, last, x, gradient, result, sums);                                              \
    }                                                                                                             \
  }
CALLS(By16, __attribute__((target("avx512f"))), Lanes);
CALLS(By8, __attribute__((target("avx2"))), EightLanes);
CALLS(By4, , FourLanes);
#undef CALLS

// Those for this processor.
template <typename Element>
Calls<Element> Find() {
  switch (ProcessorLanes()) {
    case 16: return {By16<Element>::Forward, By16<Element>::Gradient};
    case 8: return {By8<Element>::Forward, By8<Element>::Gradient};
    default: return {By4<Element>::Forward, By4<Element>::Gradient};
  }
}

}  // namespace max_pool

#endif  // INCEPTION_JAX_MAX_POOL_H_
