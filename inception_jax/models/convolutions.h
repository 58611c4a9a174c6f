// Convolutions and their gradients, divided among threads: of images or of rows by oneDNN's convolutions, of tiles by
// Winograd's filtering (`winograd.h`), of a kernel's rows as products of matrices.

#ifndef INCEPTION_JAX_CONVOLUTIONS_H_
#define INCEPTION_JAX_CONVOLUTIONS_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "primitives.h"
#include "threads.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace onednn {

constexpr int kLeastRows = 2;           // of a band, about: a part of an image
constexpr int kMostSums = 16;           // partial sums of a kernel's gradient, each as large as it
constexpr int kMostGathered = 1 << 20;  // bytes of a map that a kernel's gradient gathers for each of its taps
constexpr int kBlockTiles = 64;         // of Winograd's filtering: about as many in a block of a map
constexpr int kGradientTiles = 196;     // and of a kernel's gradient, which sums over them

using Buffer = ffi::AnyBuffer;  // float32 or bfloat16

inline void Run(ffi::ThreadPool& pool, const std::vector<Reorder>& reorders, void* source, void* target) {
  Divide(pool, reorders.size(), [&](int64_t part) {
    const Reorder& reorder = reorders[part];
    Execute(reorder.run, reorder.scratch, {{DNNL_ARG_FROM, reorder.from, source}, {DNNL_ARG_TO, reorder.to, target}});
  });
}

inline void CheckEqual(const Buffer& one, const Buffer& other) {
  const auto type = one.element_type();
  if (type != other.element_type() || (type != ffi::DataType::F32 && type != ffi::DataType::BF16))
    throw std::runtime_error("expected arrays of float32, or of bfloat16");
}

inline Sizes SizesOf(ffi::Span<const int64_t> span) { return Sizes(span.begin(), span.end()); }

inline int64_t Product(const Sizes& sizes, size_t first) {
  int64_t product = 1;
  for (size_t axis = first; axis < sizes.size(); axis++) product *= sizes[axis];
  return product;
}

// The tiles of maps [images, rows, columns], and the places of one of them in two maps that belong together.
struct Tiles {
  int64_t rows, columns, count;

  Tiles(const winograd::Filtering& filtering, const Sizes& map)
      : rows((map[1] + filtering.tile_rows - 1) / filtering.tile_rows),
        columns((map[2] + filtering.tile_columns - 1) / filtering.tile_columns),
        count(map[0] * rows * columns),
        tile_rows(filtering.tile_rows),
        tile_columns(filtering.tile_columns) {}

  // Its place in the maps that have `pads` (top, left) before their first tile.
  template <typename Value>
  winograd::Place<Value> Find(int64_t tile, Value* maps, const Sizes& sizes, int64_t top, int64_t left) const {
    int64_t image = tile / (rows * columns), row = tile / columns % rows, column = tile % columns;
    return {maps + image * Product(sizes, 1), sizes[1], sizes[2], sizes[3], row * tile_rows - top,
            column * tile_columns - left};
  }

 private:
  int64_t tile_rows, tile_columns;
};

// The matrices of a kernel, seen forward or from its output.
inline void TransformKernel(ffi::ThreadPool& pool, const winograd::Filtering& filtering, const Key& key,
                            const float* kernel, float* matrices) {
  const int64_t inputs = key.kernel[2], outputs = key.kernel[3], groups = inputs / kLanes;
  const int64_t slices = std::min(groups, kPartsPerThread * std::max<int64_t>(1, pool.num_threads()));
  Divide(pool, slices, [&](int64_t slice) {
    const int64_t first = slice * groups / slices * kLanes;
    const int64_t last = (slice + 1) * groups / slices * kLanes;
    (key.kind == kInputGradient ? filtering.reversed_kernel : filtering.kernel)(kernel, inputs, outputs, first, last,
                                                                                matrices);
  });
}

// Forward and input gradient: tiles of `from` to tiles of `to`. kernel: in HWIO, or its matrices where it is packed.
inline void FilterMaps(ffi::ThreadPool& pool, const winograd::Filtering& filtering, const Key& key, float* x,
                       float* kernel, bool is_packed, float* y) {
  const bool back = key.kind == kInputGradient;
  const Sizes &from = back ? key.y : key.x, &to = back ? key.x : key.y;
  const int64_t inputs = key.kernel[2], outputs = key.kernel[3], threads = std::max<int64_t>(1, pool.num_threads());
  // Seen from its output, the input gradient has what is left of the kernel as its padding.
  const int64_t top = back ? filtering.row_taps - 1 - key.pads[0] : key.pads[0];
  const int64_t left = back ? filtering.column_taps - 1 - key.pads[2] : key.pads[2];

  Lease workspace;
  float* matrices = kernel;
  if (!is_packed) {
    matrices = reinterpret_cast<float*>(workspace->Get(filtering.Size(inputs, outputs) * sizeof(float)));
    TransformKernel(pool, filtering, key, kernel, matrices);
  }

  const Tiles tiles(filtering, to);
  const int64_t rounds = (tiles.count + kBlockTiles * threads - 1) / (kBlockTiles * threads);
  const int64_t blocks = std::min(tiles.count, rounds * threads);  // of equal size: the last waits for no other
  Divide(pool, blocks, [&](int64_t block) {
    const int64_t first = block * tiles.count / blocks, count = (block + 1) * tiles.count / blocks - first;
    const Products& products = Compiled(ProductKey{filtering.products, count, from[3], to[3], false, false});
    thread_local Workspace maps;
    const int64_t size = filtering.Size(count, from[3]), after_size = filtering.Size(count, to[3]);
    auto* before = reinterpret_cast<float*>(maps.Get((size + after_size) * sizeof(float)));
    float* after = before + size;
    for (int64_t tile = 0; tile < count; tile++)
      filtering.input(tiles.Find<const float>(first + tile, back ? y : x, from, top, left), before + tile * from[3],
                      winograd::Step(count, from[3]));
    Run(products, before, matrices, after);
    for (int64_t tile = 0; tile < count; tile++)
      filtering.output(after + tile * to[3], winograd::Step(count, to[3]),
                       tiles.Find(first + tile, back ? x : y, to, 0, 0));
  });
}

// The gradient of the kernel: a sum over tiles, of parts whose number and order are fixed.
inline void FilterKernel(ffi::ThreadPool& pool, const winograd::Filtering& filtering, const Key& key, float* x,
                         float* kernel, float* y) {
  const int64_t inputs = key.kernel[2], outputs = key.kernel[3], threads = std::max<int64_t>(1, pool.num_threads());
  const Tiles tiles(filtering, key.y);
  const int64_t parts = std::min<int64_t>({threads, kMostSums, tiles.count});
  const int64_t set = filtering.Size(inputs, outputs);
  Lease workspace;
  auto* sums = reinterpret_cast<float*>(workspace->Get(parts * set * sizeof(float)));
  Divide(pool, parts, [&](int64_t part) {
    const int64_t begin = part * tiles.count / parts, end = (part + 1) * tiles.count / parts;
    const int64_t blocks = (end - begin + kGradientTiles - 1) / kGradientTiles;
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t first = begin + block * (end - begin) / blocks;
      const int64_t count = begin + (block + 1) * (end - begin) / blocks - first;
      const Products& products = Compiled(ProductKey{filtering.products, inputs, count, outputs, true, block > 0});
      thread_local Workspace maps;
      const int64_t size = filtering.Size(count, inputs), gradient_size = filtering.Size(count, outputs);
      auto* before = reinterpret_cast<float*>(maps.Get((size + gradient_size) * sizeof(float)));
      float* gradients = before + size;
      for (int64_t tile = 0; tile < count; tile++) {
        filtering.input(tiles.Find<const float>(first + tile, x, key.x, key.pads[0], key.pads[2]),
                        before + tile * inputs, winograd::Step(count, inputs));
        filtering.gradient(tiles.Find<const float>(first + tile, y, key.y, 0, 0), gradients + tile * outputs,
                           winograd::Step(count, outputs));
      }
      Run(products, before, gradients, sums + part * set);
    }
  });
  const int64_t groups = inputs / kLanes, slices = std::min(groups, kPartsPerThread * threads);
  Divide(pool, slices, [&](int64_t slice) {
    filtering.kernel_gradient(sums, parts, set, inputs, outputs, slice * groups / slices * kLanes,
                              (slice + 1) * groups / slices * kLanes, kernel);
  });
}

// Whether a product of matrices is faster than oneDNN's kernel gradient: in bfloat16, for 1x1 kernels and small maps (2
// to 25 times on maps of 2x2 to 8x8).
inline bool TakesProduct(const Key& key) {
  const bool is_pointwise = key.kernel[0] * key.kernel[1] == 1;
  const int64_t gathered_bytes = Product(key.y, 0) / key.y[3] * key.kernel[2] * 2;  // for one tap
  return key.kind == kKernelGradient && !key.IsDepthwise() && key.type == dnnl_bf16 && key.kernel[2] % 16 == 0 &&
         key.kernel[3] % 16 == 0 && (is_pointwise || gathered_bytes <= kMostGathered);
}

// The gradient of a kernel as a product: pixels under its taps, [pixels of y, taps * inputs], transposed, with the
// gradient of y, [its pixels, outputs]. Each thread makes rows of the result, so nothing is added up.
inline void MultiplyKernel(ffi::ThreadPool& pool, const Key& key, uint16_t* x, char* kernel, uint16_t* y) {
  const int64_t inputs = key.kernel[2], outputs = key.kernel[3], rows = key.kernel[0] * key.kernel[1] * inputs;
  const int64_t pixels = Product(key.y, 0) / outputs, row_size = key.x[2] * inputs;
  // A 1x1 kernel of stride 1 without padding: the map itself is the matrix.
  const bool gathers = rows != inputs || key.strides != Sizes{1, 1} || key.pads != Sizes{0, 0, 0, 0};
  const int64_t groups = rows / kLanes, parts = std::min<int64_t>(groups, std::max<int64_t>(1, pool.num_threads()));
  Divide(pool, parts, [&](int64_t part) {
    const int64_t first = part * groups / parts * kLanes, count = (part + 1) * groups / parts * kLanes - first;
    uint16_t* matrix = x + first;
    if (gathers) {
      thread_local Workspace workspace;
      matrix = reinterpret_cast<uint16_t*>(workspace.Get(pixels * count * sizeof(uint16_t)));
      uint16_t* to = matrix;
      for (int64_t image = 0; image < key.y[0]; image++)
        for (int64_t row = 0; row < key.y[1]; row++)
          for (int64_t column = 0; column < key.y[2]; column++)
            for (int64_t place = first; place < first + count;) {  // runs of channels of one tap
              const int64_t tap = place / inputs, channel = place % inputs;
              const int64_t run = std::min(inputs - channel, first + count - place);
              const int64_t from_row = row * key.strides[0] - key.pads[0] + tap / key.kernel[1];
              const int64_t from_column = column * key.strides[1] - key.pads[2] + tap % key.kernel[1];
              const bool is_inside = from_row >= 0 && from_row < key.x[1] && from_column >= 0 && from_column < key.x[2];
              if (is_inside)
                std::copy_n(x + (image * key.x[1] + from_row) * row_size + from_column * inputs + channel, run, to);
              else
                std::fill_n(to, run, 0);
              place += run;
              to += run;
            }
    }
    const int64_t step = gathers ? count : inputs;
    Run(Compiled(TransposedKey{count, pixels, outputs, step, key.kernel_type}), matrix, y,
        kernel + first * outputs * dnnl_data_type_size(key.kernel_type));
  });
}

inline Sizes Slice(ffi::Span<const int64_t> window, int first, int last) {
  return Sizes(window.begin() + first, window.begin() + last);
}

inline dnnl_data_type_t TypeOf(const Buffer& one) {
  return one.element_type() == ffi::DataType::BF16 ? dnnl_bf16 : dnnl_f32;
}

inline const winograd::Filtering& FilteringOf(const Key& key) {
  const winograd::Filtering* found = winograd::Find(key.kernel[0], key.kernel[1]);
  if (!found) throw std::runtime_error("no Winograd filtering for this size of the kernel");
  return *found;
}

// A kernel that was laid out before: what it was in HWIO, and for how many threads it was.
struct Packed {
  Sizes sizes;
  dnnl_data_type_t type;
  int64_t threads;
};

// A part of a convolution: some images, or some rows of one.
struct Part {
  Key key;
  int64_t x, y;  // bytes before its places in the maps
  const Convolution* convolution = nullptr;
  int64_t layout = 0;  // of its kernel: an index of the division's `layouts`

  bool HasLayoutOf(const Part& other) const {
    return dnnl_memory_desc_equal(convolution->packed, other.convolution->packed) != 0;
  }
};

// A convolution in parts, of which every thread takes some. A kernel's gradient has a sum for each part.
struct Division {
  std::vector<Part> parts;
  std::vector<int64_t> layouts;  // of the kernel: the first part with each. oneDNN's choice depends on images and rows
  size_t step = 0;               // bytes between the places of two kernels

  bool TakesKernelAsItIs() const { return layouts.size() == 1 && parts[0].convolution->reorders.empty(); }
};

struct DivisionKey {
  Key key;
  int64_t threads;
  bool operator<(const DivisionKey& other) const { return std::tie(threads, key) < std::tie(other.threads, other.key); }
};

inline int64_t ImageBytes(const Key& key, const Sizes& sizes) {
  return Product(sizes, 1) * dnnl_data_type_size(key.type);
}

// Rows of the map that is divided.
inline int64_t DividedRows(const Key& key) { return key.kind == kInputGradient ? key.x[1] : key.y[1]; }

// The number of bands of rows of each image: several where the images leave threads without work.
inline int64_t CountBands(const Key& key, int64_t threads, int64_t wanted) {
  const int64_t images = key.x[0];
  const bool skips = key.kind == kInputGradient && key.strides[0] != 1;             // rows that belong to no output
  const bool is_padded_more = std::max(key.pads[0], key.pads[1]) >= key.kernel[0];  // a band might have no row
  if (images >= wanted || images % threads == 0 || skips || is_padded_more) return 1;
  const int64_t bands = std::min(threads / std::gcd(images, threads), wanted / images);
  return std::max<int64_t>(1, std::min(bands, DividedRows(key) / kLeastRows));
}

// Rows [first, last) of the map that is divided, with those of the other map under their kernels.
inline Part Band(const Part& whole, int64_t first, int64_t last) {
  Part band = whole;
  Key& key = band.key;
  const int64_t taps = key.kernel[0], top = key.pads[0];
  const int64_t x_row = ImageBytes(key, key.x) / key.x[1], y_row = ImageBytes(key, key.y) / key.y[1];
  if (key.kind == kInputGradient) {
    const int64_t begin = std::max<int64_t>(0, first + top - taps + 1), end = std::min(key.y[1], last + top);
    band.x += first * x_row;
    band.y += begin * y_row;
    key.x[1] = last - first;
    key.y[1] = end - begin;
    key.pads[0] = first + top - begin;
    key.pads[1] = key.y[1] + taps - 1 - key.x[1] - key.pads[0];
  } else {
    const int64_t above = first * key.strides[0] - top, below = (last - 1) * key.strides[0] - top + taps;
    const int64_t begin = std::max<int64_t>(0, above), end = std::min(key.x[1], below);
    band.x += begin * x_row;
    band.y += first * y_row;
    key.x[1] = end - begin;
    key.y[1] = last - first;
    key.pads[0] = begin - above;
    key.pads[1] = below - end;
  }
  return band;
}

inline Division* Compile(const DivisionKey& of) {
  auto* made = new Division;
  const Key& key = of.key;
  const int64_t wanted =
      key.kind == kKernelGradient ? std::min<int64_t>(of.threads, kMostSums) : kPartsPerThread * of.threads;
  const int64_t images = key.x[0], per_part = (images + wanted - 1) / wanted;
  const int64_t bands = CountBands(key, of.threads, wanted), rows = DividedRows(key);
  for (int64_t first = 0; first < images; first += per_part) {
    Part part{key, first * ImageBytes(key, key.x), first * ImageBytes(key, key.y)};
    part.key.x[0] = part.key.y[0] = std::min(per_part, images - first);
    for (int64_t band = 0; band < bands; band++)
      made->parts.push_back(bands == 1 ? part : Band(part, band * rows / bands, (band + 1) * rows / bands));
  }
  for (Part& part : made->parts) {
    part.convolution = &Compiled(part.key);
    const size_t bytes = (part.convolution->packed_bytes + kAlignment - 1) / kAlignment * kAlignment;
    made->step = std::max(made->step, bytes);
    auto same = [&](int64_t other) { return part.HasLayoutOf(made->parts[other]); };
    part.layout = std::find_if(made->layouts.begin(), made->layouts.end(), same) - made->layouts.begin();
    if (part.layout == static_cast<int64_t>(made->layouts.size())) made->layouts.push_back(&part - made->parts.data());
  }
  return made;
}

// Lays a kernel in HWIO out, once for each layout.
inline void Pack(ffi::ThreadPool& pool, const Division& division, void* kernel, char* packed) {
  for (int64_t first : division.layouts) {
    const Part& part = division.parts[first];
    char* place = packed + part.layout * division.step;
    if (part.convolution->reorders.empty())
      std::copy_n(static_cast<char*>(kernel), part.convolution->packed_bytes, place);
    else
      Run(pool, part.convolution->reorders, kernel, place);
  }
}

// kernel: in HWIO, or as `Pack` lays it out.
inline void ConvolveMaps(ffi::ThreadPool& pool, const Division& division, char* x, void* kernel, bool is_packed,
                         char* y, const After& after) {
  Lease workspace;
  auto* packed = static_cast<char*>(kernel);
  if (!is_packed && !division.TakesKernelAsItIs()) {
    packed = workspace->Get(division.layouts.size() * division.step);
    Pack(pool, division, kernel, packed);
  }
  Divide(pool, division.parts.size(), [&](int64_t i) {
    const Part& part = division.parts[i];
    Run(part.key, *part.convolution, x + part.x, packed + part.layout * division.step, y + part.y, after);
  });
}

// The gradient of a kernel: the sum of those of the parts, in their order.
inline void SumKernels(ffi::ThreadPool& pool, const Division& division, int64_t threads, char* x, void* kernel,
                       char* y) {
  const std::vector<Part>& parts = division.parts;
  const Convolution& first = *parts[0].convolution;
  auto differs = [&](const Part& part) { return part.layout != parts[0].layout; };
  const size_t others = std::count_if(parts.begin(), parts.end(), differs);
  Lease workspace;
  char* memory = workspace->Get((parts.size() + others) * division.step);
  Divide(pool, parts.size(), [&](int64_t i) {
    Run(parts[i].key, *parts[i].convolution, x + parts[i].x, memory + i * division.step, y + parts[i].y);
  });
  std::vector<float*> sums;
  char* next = memory + parts.size() * division.step;
  for (const Part& part : parts) {
    char* place = memory + sums.size() * division.step;
    if (differs(part)) {
      Run(pool, Compiled(LayoutKey{part.key, parts[0].key}), place, next);
      place = std::exchange(next, next + division.step);
    }
    sums.push_back(reinterpret_cast<float*>(place));
  }
  const int64_t count = first.packed_bytes / sizeof(float);
  const int64_t slices = count < kSmallKernel ? 1 : kPartsPerThread * threads;
  Divide(pool, slices, [&](int64_t slice) {
    for (size_t part = 1; part < sums.size(); part++)
      for (int64_t i = slice * count / slices; i < (slice + 1) * count / slices; i++) sums[0][i] += sums[part][i];
  });
  if (first.reorders.empty())
    std::copy_n(sums[0], count, static_cast<float*>(kernel));
  else
    Run(pool, first.reorders, sums[0], kernel);
}

// Bytes of a packed kernel; 0: the convolution takes it as it is.
inline size_t PackedBytes(const DivisionKey& of, bool filters) {
  if (filters) return FilteringOf(of.key).Size(of.key.kernel[2], of.key.kernel[3]) * sizeof(float);
  const Division& division = Compiled(of);
  return division.TakesKernelAsItIs() ? 0 : division.layouts.size() * division.step;
}

// forward: (x, kernel) -> y; input gradient: (gradient of y, kernel) -> of x; kernel gradient: (x, gradient of y) -> of
// the kernel, which is of float32 or of the maps' type. window: strides, then pads. filters: by Winograd's filtering
// (float32, stride 1). after: of forward without it. packed: not null where the kernel of forward is.
inline void Convolve(ffi::ThreadPool& pool, int64_t kind, ffi::Span<const int64_t> window, bool filters, Buffer first,
                     Buffer second, Buffer result, const After& after = {}, const Packed* packed = nullptr) {
  Buffer &x = kind == kInputGradient ? result : first, &kernel = kind == kKernelGradient ? result : second;
  Buffer& y = kind == kForward ? result : kind == kInputGradient ? first : second;
  CheckEqual(x, y);
  if (!packed && kernel.element_type() != ffi::DataType::F32) CheckEqual(x, kernel);
  const dnnl_data_type_t type = TypeOf(x);
  Key key{kind,
          type,
          packed ? packed->type : TypeOf(kernel),
          SizesOf(x.dimensions()),
          packed ? packed->sizes : SizesOf(kernel.dimensions()),
          SizesOf(y.dimensions()),
          Slice(window, 0, 2),
          Slice(window, 2, 6),
          after.coefficients != nullptr,
          after.relu};
  const DivisionKey divided{key, packed ? packed->threads : std::max<int64_t>(1, pool.num_threads())};
  if (packed && (kernel.element_type() != ffi::DataType::U8 || PackedBytes(divided, filters) != kernel.element_count()))
    throw std::runtime_error("a kernel that was packed for another convolution");
  if (filters) {
    auto data = [](const Buffer& buffer) { return static_cast<float*>(buffer.untyped_data()); };
    if (kind == kKernelGradient)
      FilterKernel(pool, FilteringOf(key), key, data(x), data(kernel), data(y));
    else
      FilterMaps(pool, FilteringOf(key), key, data(x), data(kernel), packed != nullptr, data(y));
    return;
  }
  if (TakesProduct(key)) {
    MultiplyKernel(pool, key, static_cast<uint16_t*>(x.untyped_data()), static_cast<char*>(kernel.untyped_data()),
                   static_cast<uint16_t*>(y.untyped_data()));
    return;
  }
  auto *x_data = static_cast<char*>(x.untyped_data()), *y_data = static_cast<char*>(y.untyped_data());
  if (kind == kKernelGradient)
    SumKernels(pool, Compiled(divided), divided.threads, x_data, kernel.untyped_data(), y_data);
  else
    ConvolveMaps(pool, Compiled(divided), x_data, kernel.untyped_data(), packed != nullptr, y_data, after);
}

}  // namespace onednn

#endif  // INCEPTION_JAX_CONVOLUTIONS_H_
