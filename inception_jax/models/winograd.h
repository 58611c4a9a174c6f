// Winograd's minimal filtering (arXiv:1509.09308) for `onednn.cc`: the transforms of tiles and kernels.
//
// `kTile` outputs along an axis depend on `kReach` inputs and take `kReach` products per pair of channels, where the
// direct sum takes kTile * kTaps: 36 for 144 with 4x4 outputs of a 3x3 kernel, 10 for 28 with 4 outputs of 7x1. Maps
// are NHWC and kernels HWIO; both numbers of channels are multiples of `kLanes`, which are computed at a time.
// Transformed values lie in one matrix per product, `Step` elements apart.

#ifndef INCEPTION_JAX_WINOGRAD_H_
#define INCEPTION_JAX_WINOGRAD_H_

#include <cstdint>

#include "lanes.h"

namespace winograd {

// Elements from one matrix to the next: no multiple of a page, so that the values of a tile share no set of the cache.
constexpr int64_t Step(int64_t rows, int64_t columns) { return rows * columns + kLanes; }

// Where the polynomials are evaluated, beside infinity: the first kReach - 1 of them. Chosen among fractions of small
// numbers for small errors of rounding: of a 3x3 kernel less than half of those with 0, 1, -1, 2 and -2.
constexpr double kPoints[] = {0, 1, -1, 0.5, -2, 1.5, -2.0 / 3, 3, -1.0 / 3};

// The matrices of an axis. With one tap they are the number 1, and the axis is not filtered.
template <int taps, int tile>
struct Axis {
  static constexpr int kTaps = taps, kTile = tile, kReach = taps + tile - 1;
  float inputs[kReach][kReach]{}, outputs[kTile][kReach]{}, kernel[kReach][kTaps]{};

  constexpr Axis() {
    for (int row = 0; row < kReach; row++) {
      const bool finite = row + 1 < kReach;
      double factors[kReach + 1] = {1};  // of the polynomial whose roots are the other points; by power
      double value = 1, size = 0, scale = 1;
      for (int root = 0, degree = 1; root + 1 < kReach; root++) {
        if (root == row) continue;
        for (int power = degree; power >= 0; power--)
          factors[power] = (power ? factors[power - 1] : 0) - kPoints[root] * factors[power];
        degree++;
        if (finite) value *= kPoints[row] - kPoints[root];
      }
      for (double factor : factors) size += factor < 0 ? -factor : factor;
      while (size * scale > 2) scale /= 2;  // exact: a power of two
      for (int power = 0; power < kReach; power++) inputs[row][power] = factors[power] * scale;
      double point = 1;
      for (int power = 0; power < kTaps || power < kTile; power++) {
        if (power < kTaps) kernel[row][power] = (finite ? point / value : power == kTaps - 1) / scale;
        if (power < kTile) outputs[power][row] = finite ? point : power == kTile - 1;
        if (finite) point *= kPoints[row];
      }
    }
  }
};

// A map [rows, columns, channels] and the pixel, maybe outside, where a tile of it begins.
template <typename Value>
struct Place {
  Value* map;
  int64_t rows, columns, channels, top, left;

  INLINE bool Has(int row, int column) const {
    return static_cast<uint64_t>(top + row) < static_cast<uint64_t>(rows) &&
           static_cast<uint64_t>(left + column) < static_cast<uint64_t>(columns);
  }
  INLINE Value* At(int row, int column) const {
    return map + ((top + row) * columns + left + column) * channels;
  }
};

// The pixels of a tile, from a channel on; 0 outside the map.
template <int kRows, int kColumns>
INLINE void LoadTile(const Place<const float>& place, int64_t channel, Lanes* tile) {
  for (int row = 0; row < kRows; row++)
    for (int column = 0; column < kColumns; column++) {
      Lanes& pixel = tile[row * kColumns + column];
      if (place.Has(row, column))
        Load(place.At(row, column) + channel, &pixel);
      else
        pixel = Lanes{};
    }
}

// A matrix, of constants matrix(row, column), times the columns of an array [columns of the matrix, kOthers].
template <int kRows, int kColumns, int kOthers, typename Matrix>
INLINE void MultiplyColumns(const Matrix& matrix, const Lanes* in, Lanes* out) {
#pragma GCC unroll 16
  for (int other = 0; other < kOthers; other++) {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; row++) {
      Lanes sum{};
#pragma GCC unroll 16
      for (int column = 0; column < kColumns; column++)
        if (matrix(row, column) != 0) sum += matrix(row, column) * in[column * kOthers + other];
      out[row * kOthers + other] = sum;
    }
  }
}

// The same with the rows of an array [kOthers, columns of the matrix].
template <int kRows, int kColumns, int kOthers, typename Matrix>
INLINE void MultiplyRows(const Matrix& matrix, const Lanes* in, Lanes* out) {
#pragma GCC unroll 16
  for (int other = 0; other < kOthers; other++)
    MultiplyColumns<kRows, kColumns, 1>(matrix, in + other * kColumns, out + other * kRows);
}

// The transforms of the rows and of the columns of a map.
template <typename Rows, typename Columns>
struct Transforms {
  static constexpr Rows kRows{};
  static constexpr Columns kColumns{};
  static constexpr int kProducts = Rows::kReach * Columns::kReach, kTaps = Rows::kTaps * Columns::kTaps;

  // A tile of inputs to one row of the matrices [tiles, channels].
  PER_PROCESSOR static void Input(Place<const float> place, float* out, int64_t step) {
    for (int64_t channel = 0; channel < place.channels; channel += kLanes) {
      Lanes d[kProducts], half[kProducts], v[kProducts];
      LoadTile<Rows::kReach, Columns::kReach>(place, channel, d);
      MultiplyColumns<Rows::kReach, Rows::kReach, Columns::kReach>(
          [](int i, int j) { return kRows.inputs[i][j]; }, d, half);
      MultiplyRows<Columns::kReach, Columns::kReach, Rows::kReach>(
          [](int i, int j) { return kColumns.inputs[i][j]; }, half, v);
      for (int product = 0; product < kProducts; product++) Store(out + product * step + channel, v[product]);
    }
  }

  // One row of the matrices [tiles, channels] to a tile of outputs, as far as the map has its pixels.
  PER_PROCESSOR static void Output(const float* in, int64_t step, Place<float> place) {
    for (int64_t channel = 0; channel < place.channels; channel += kLanes) {
      Lanes m[kProducts], half[Rows::kTile * Columns::kReach], y[Rows::kTile * Columns::kTile];
      for (int product = 0; product < kProducts; product++) Load(in + product * step + channel, &m[product]);
      MultiplyColumns<Rows::kTile, Rows::kReach, Columns::kReach>(
          [](int i, int j) { return kRows.outputs[i][j]; }, m, half);
      MultiplyRows<Columns::kTile, Columns::kReach, Rows::kTile>(
          [](int i, int j) { return kColumns.outputs[i][j]; }, half, y);
      for (int row = 0; row < Rows::kTile; row++)
        for (int column = 0; column < Columns::kTile; column++)
          if (place.Has(row, column)) Store(place.At(row, column) + channel, y[row * Columns::kTile + column]);
    }
  }

  // A tile of gradients of outputs to one row of the matrices [tiles, channels].
  PER_PROCESSOR static void Gradient(Place<const float> place, float* out, int64_t step) {
    for (int64_t channel = 0; channel < place.channels; channel += kLanes) {
      Lanes y[Rows::kTile * Columns::kTile], half[Rows::kReach * Columns::kTile], m[kProducts];
      LoadTile<Rows::kTile, Columns::kTile>(place, channel, y);
      MultiplyColumns<Rows::kReach, Rows::kTile, Columns::kTile>(
          [](int i, int j) { return kRows.outputs[j][i]; }, y, half);
      MultiplyRows<Columns::kReach, Columns::kTile, Rows::kReach>(
          [](int i, int j) { return kColumns.outputs[j][i]; }, half, m);
      for (int product = 0; product < kProducts; product++) Store(out + product * step + channel, m[product]);
    }
  }

  // The part of a kernel [taps, inputs, outputs] that belongs to input channels `first` to `last`, of the matrices
  // [inputs, outputs].
  PER_PROCESSOR static void Kernel(const float* kernel, int64_t inputs, int64_t outputs, int64_t first,
                                   int64_t last, float* out) {
    for (int64_t at = first * outputs; at < last * outputs; at += kLanes) {
      Lanes g[kTaps];
      for (int tap = 0; tap < kTaps; tap++) Load(kernel + tap * inputs * outputs + at, &g[tap]);
      StoreKernel(g, out + at, Step(inputs, outputs));
    }
  }

  // The same for the gradient of the input: taps in reverse order, matrices [outputs, inputs].
  PER_PROCESSOR static void ReversedKernel(const float* kernel, int64_t inputs, int64_t outputs, int64_t first,
                                           int64_t last, float* out) {
    for (int64_t input = first; input < last; input += kLanes)
      for (int64_t output = 0; output < outputs; output++) {
        Lanes g[kTaps];
        for (int tap = 0; tap < kTaps; tap++) {
          const float* from = kernel + (kTaps - 1 - tap) * inputs * outputs + input * outputs + output;
          for (int lane = 0; lane < kLanes; lane++) g[tap][lane] = from[lane * outputs];
        }
        StoreKernel(g, out + output * inputs + input, Step(inputs, outputs));
      }
  }

  // The part of a kernel's gradient [taps, inputs, outputs] that belongs to input channels `first` to `last`: of the
  // sum of `count` sets of matrices [inputs, outputs], `set` elements apart.
  PER_PROCESSOR static void KernelGradient(const float* in, int64_t count, int64_t set, int64_t inputs,
                                           int64_t outputs, int64_t first, int64_t last, float* kernel) {
    for (int64_t at = first * outputs; at < last * outputs; at += kLanes) {
      Lanes u[kProducts], half[Rows::kTaps * Columns::kReach], g[kTaps];
      for (int product = 0; product < kProducts; product++) {
        const float* from = in + product * Step(inputs, outputs) + at;
        Load(from, &u[product]);
        for (int64_t other = 1; other < count; other++) {
          Lanes part;
          Load(from + other * set, &part);
          u[product] += part;
        }
      }
      MultiplyColumns<Rows::kTaps, Rows::kReach, Columns::kReach>(
          [](int i, int j) { return kRows.kernel[j][i]; }, u, half);
      MultiplyRows<Columns::kTaps, Columns::kReach, Rows::kTaps>(
          [](int i, int j) { return kColumns.kernel[j][i]; }, half, g);
      for (int tap = 0; tap < kTaps; tap++) Store(kernel + tap * inputs * outputs + at, g[tap]);
    }
  }

 private:
  INLINE static void StoreKernel(const Lanes* g, float* out, int64_t step) {
    Lanes half[Rows::kReach * Columns::kTaps], u[kProducts];
    MultiplyColumns<Rows::kReach, Rows::kTaps, Columns::kTaps>(
        [](int i, int j) { return kRows.kernel[i][j]; }, g, half);
    MultiplyRows<Columns::kReach, Columns::kTaps, Rows::kReach>(
        [](int i, int j) { return kColumns.kernel[i][j]; }, half, u);
    for (int product = 0; product < kProducts; product++) Store(out + product * step, u[product]);
  }
};

// The transforms for kernels of one size.
struct Filtering {
  int row_taps, column_taps, tile_rows, tile_columns, products;
  decltype(&Transforms<Axis<1, 1>, Axis<1, 1>>::Input) input;
  decltype(&Transforms<Axis<1, 1>, Axis<1, 1>>::Output) output;
  decltype(&Transforms<Axis<1, 1>, Axis<1, 1>>::Gradient) gradient;
  decltype(&Transforms<Axis<1, 1>, Axis<1, 1>>::Kernel) kernel, reversed_kernel;
  decltype(&Transforms<Axis<1, 1>, Axis<1, 1>>::KernelGradient) kernel_gradient;

  // Elements of a matrix per product.
  int64_t Size(int64_t rows, int64_t columns) const { return products * Step(rows, columns); }
};

template <typename Rows, typename Columns>
Filtering FilteringOf() {
  using T = Transforms<Rows, Columns>;
  return {Rows::kTaps, Columns::kTaps, Rows::kTile, Columns::kTile,     T::kProducts,      &T::Input,
          &T::Output,  &T::Gradient,   &T::Kernel,  &T::ReversedKernel, &T::KernelGradient};
}

// The filtering for kernels of [rows, columns] taps; null: there is none. `onednn.py` has the same list.
inline const Filtering* Find(int64_t rows, int64_t columns) {
  using One = Axis<1, 1>;
  using Three = Axis<3, 4>;
  using Seven = Axis<7, 4>;
  static const Filtering all[] = {FilteringOf<Three, Three>(), FilteringOf<Three, One>(), FilteringOf<One, Three>(),
                                  FilteringOf<Seven, One>(), FilteringOf<One, Seven>()};
  for (const Filtering& one : all)
    if (one.row_taps == rows && one.column_taps == columns) return &one;
  return nullptr;
}

}  // namespace winograd

#endif  // INCEPTION_JAX_WINOGRAD_H_
