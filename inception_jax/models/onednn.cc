// Convolutions of float32 and bfloat16 images by oneDNN, max pools and batch norm, as calls of a compiled program on
// CPUs (XLA's foreign function interface).
//
// `onednn.py` compiles this file, loads it and describes the call. The batch is divided into parts, which XLA's own
// threads take one after the other: oneDNN itself runs each on one thread, so that no second pool of threads competes.
// Where images are few, parts are bands of their rows. Convolutions by Winograd's filtering (`winograd.h`) are divided
// into blocks of tiles instead; there oneDNN computes the products of matrices.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch_norm.h"
#include "convolutions.h"
#include "max_pool.h"
#include "primitives.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace {

using namespace onednn;  // of `primitives.h`, `threads.h` and `convolutions.h`
using Maps = ffi::Buffer<ffi::BF16>;
using Floats = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::U8>;

constexpr int kPartElements = 1 << 15;  // of a map, about: a part of batch norm

// Pools images, or slices of their channels where the images are few. gradient: null forward; result: of the map.
template <typename Element>
void MaxPool(ffi::ThreadPool& pool, ffi::Span<const int64_t> window, const Buffer& maps, const Buffer& pooled,
             const Element* gradient, Element* result) {
  auto x = maps.dimensions(), y = pooled.dimensions();
  const int64_t images = x[0], threads = std::max<int64_t>(1, pool.num_threads());
  const max_pool::Windows windows{x[1], x[2], x[3], y[1], y[2], window[0], window[1], window[2], window[3]};
  const int64_t groups = (x[3] + kLanes - 1) / kLanes;
  const int64_t slices = std::clamp<int64_t>(kPartsPerThread * threads / images, 1, groups);
  const int64_t x_step = x[1] * x[2] * x[3], y_step = y[1] * y[2] * y[3];
  static const auto calls = max_pool::Find<Element>();
  const auto* x_data = static_cast<const Element*>(maps.untyped_data());
  Divide(pool, images * slices, [&](int64_t part) {
    const int64_t image = part / slices, slice = part % slices;
    const int64_t first = slice * groups / slices * kLanes;
    const int64_t last = std::min<int64_t>(x[3], (slice + 1) * groups / slices * kLanes);
    if (gradient) {
      thread_local Workspace sums;
      const int64_t size = windows.size * windows.columns * (last - first);
      calls.gradient(windows, first, last, x_data + image * x_step, gradient + image * y_step,
                     result + image * x_step, reinterpret_cast<float*>(sums.Get(size * sizeof(float))));
    } else {
      calls.forward(windows, first, last, x_data + image * x_step, result + image * y_step);
    }
  });
}

// Calls work(type): `type` is a pointer, to nothing, of what the buffers hold: float or bfloat16.
template <typename Work>
void WithElements(const Buffer& one, const Buffer& other, const Work& work) {
  CheckEqual(one, other);
  if (one.element_type() == ffi::DataType::BF16)
    work(static_cast<uint16_t*>(nullptr));
  else
    work(static_cast<float*>(nullptr));
}

// The rows of a map [..., channels] in parts, for batch norm; their number does not depend on that of the threads.
class Parts {
 public:
  Parts(const Maps& maps, const float* coefficients, bool relu)
      : rows_{static_cast<int64_t>(maps.element_count()) / maps.dimensions().back(), maps.dimensions().back(),
              coefficients, relu},
        per_part_(std::max<int64_t>(1, kPartElements / rows_.channels)) {}

  int64_t count() const { return (rows_.count + per_part_ - 1) / per_part_; }
  const batch_norm::Rows& rows() const { return rows_; }

  // Calls work(part, its rows, its first element).
  template <typename Work>
  void Divide(ffi::ThreadPool& pool, const Work& work) const {
    ::Divide(pool, count(), [&](int64_t part) {
      batch_norm::Rows rows = rows_;
      const int64_t first = part * per_part_;
      rows.count = std::min(per_part_, rows_.count - first);
      work(part, rows, first * rows_.channels);
    });
  }

 private:
  batch_norm::Rows rows_;
  int64_t per_part_;
};

// Sums over the rows of two numbers per channel, divided by `divisor`: [2, channels]. sum(rows of a part, its first
// element, sums) makes those of a part; they are added in double precision, in order.
template <typename Sum>
void SumParts(ffi::ThreadPool& pool, const Parts& parts, double divisor, const Sum& sum, float* result) {
  const int64_t size = 2 * parts.rows().channels;
  Lease workspace;
  auto* sums = reinterpret_cast<float*>(workspace->Get(parts.count() * size * sizeof(float)));
  parts.Divide(pool, [&](int64_t part, const batch_norm::Rows& rows, int64_t first) {
    sum(rows, first, sums + part * size);
  });
  std::vector<double> total(size);
  for (int64_t part = 0; part < parts.count(); part++)
    for (int64_t i = 0; i < size; i++) total[i] += sums[part * size + i];
  for (int64_t i = 0; i < size; i++) result[i] = static_cast<float>(total[i] / divisor);
}

const uint16_t* Data(const Maps& maps) { return reinterpret_cast<const uint16_t*>(maps.untyped_data()); }
uint16_t* Data(ffi::Result<Maps>& maps) { return reinterpret_cast<uint16_t*>(maps->untyped_data()); }

template <typename Call>
ffi::Error Guarded(const Call& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
  return ffi::Error::Success();
}

ffi::Error HandleConvolution(ffi::ThreadPool pool, int64_t kind, ffi::Span<const int64_t> window, bool filters,
                             Buffer first, Buffer second, ffi::Result<Buffer> result) {
  return Guarded([&] { Convolve(pool, kind, window, filters, first, second, *result); });
}

ffi::Error HandleScaledConvolution(ffi::ThreadPool pool, ffi::Span<const int64_t> window, bool relu, Buffer x,
                                   Buffer kernel, Floats coefficients, ffi::Result<Buffer> y) {
  return Guarded([&] {
    Convolve(pool, kForward, window, false, x, kernel, *y, After{coefficients.typed_data(), relu});
  });
}

// A forward pass of maps [images, rows, columns, channels] with a kernel [rows, columns, channels, filters].
DivisionKey ForwardKey(ffi::Span<const int64_t> maps, bool bfloat16, const Sizes& kernel, dnnl_data_type_t kernel_type,
                       ffi::Span<const int64_t> window, int64_t threads, bool scales, bool relu) {
  Key key{kForward, bfloat16 ? dnnl_bf16 : dnnl_f32, kernel_type, {maps[0], maps[1], maps[2], kernel[2]}, kernel,
          {maps[0], 0, 0, kernel[3]}, Slice(window, 0, 2), Slice(window, 2, 6), scales, relu};
  for (int axis = 0; axis < 2; axis++)
    key.y[axis + 1] =
        (maps[axis + 1] + key.pads[2 * axis] + key.pads[2 * axis + 1] - kernel[axis]) / key.strides[axis] + 1;
  return {key, threads};
}

ffi::Error HandlePack(ffi::ThreadPool pool, ffi::Span<const int64_t> maps, bool bfloat16,
                      ffi::Span<const int64_t> window, int64_t threads, bool filters, bool scales, bool relu,
                      Buffer kernel, ffi::Result<Bytes> packed) {
  return Guarded([&] {
    const DivisionKey of =
        ForwardKey(maps, bfloat16, SizesOf(kernel.dimensions()), TypeOf(kernel), window, threads, scales, relu);
    if (PackedBytes(of, filters) != packed->element_count())
      throw std::runtime_error("a packed kernel has another size in this process");
    auto* place = static_cast<char*>(packed->untyped_data());
    if (filters)
      TransformKernel(pool, FilteringOf(of.key), of.key, static_cast<float*>(kernel.untyped_data()),
                      reinterpret_cast<float*>(place));
    else
      Pack(pool, Compiled(of), kernel.untyped_data(), place);
  });
}

ffi::Error HandlePackedConvolution(ffi::ThreadPool pool, ffi::Span<const int64_t> kernel, bool bfloat16_kernel,
                                   ffi::Span<const int64_t> window, int64_t threads, bool filters, bool scales,
                                   bool relu, Buffer x, Buffer packed, Floats coefficients, ffi::Result<Buffer> y) {
  return Guarded([&] {
    const Packed was{SizesOf(kernel), bfloat16_kernel ? dnnl_bf16 : dnnl_f32, threads};
    After after;
    if (scales) after = {coefficients.typed_data(), relu};
    Convolve(pool, kForward, window, filters, x, packed, *y, after, &was);
  });
}

ffi::Error HandleMaxPool(ffi::ThreadPool pool, ffi::Span<const int64_t> window, Buffer x, ffi::Result<Buffer> result) {
  return Guarded([&] {
    WithElements(x, *result, [&](auto* none) {
      MaxPool(pool, window, x, *result, none, static_cast<decltype(none)>(result->untyped_data()));
    });
  });
}

ffi::Error HandleMaxPoolGradient(ffi::ThreadPool pool, ffi::Span<const int64_t> window, Buffer x, Buffer gradient,
                                 ffi::Result<Buffer> result) {
  return Guarded([&] {
    WithElements(x, gradient, [&](auto* none) {
      MaxPool(pool, window, x, gradient, static_cast<decltype(none)>(gradient.untyped_data()),
              static_cast<decltype(none)>(result->untyped_data()));
    });
  });
}

ffi::Error HandleMoments(ffi::ThreadPool pool, Maps x, ffi::Result<Floats> moments) {
  return Guarded([&] {
    const Parts parts(x, nullptr, false);
    auto sum = [&](const batch_norm::Rows& rows, int64_t first, float* sums) {
      batch_norm::SumMoments(rows, Data(x) + first, sums);
    };
    SumParts(pool, parts, parts.rows().count, sum, moments->typed_data());
  });
}

ffi::Error HandleNormalize(ffi::ThreadPool pool, bool relu, Maps x, Floats coefficients, ffi::Result<Maps> y) {
  return Guarded([&] {
    Parts(x, coefficients.typed_data(), relu).Divide(pool, [&](int64_t, const batch_norm::Rows& rows, int64_t first) {
      batch_norm::Normalize(rows, Data(x) + first, Data(y) + first);
    });
  });
}

ffi::Error HandleGradientSums(ffi::ThreadPool pool, bool relu, Maps x, Maps gradient, Floats coefficients,
                              ffi::Result<Floats> result) {
  return Guarded([&] {
    auto sum = [&](const batch_norm::Rows& rows, int64_t first, float* sums) {
      batch_norm::SumGradients(rows, Data(x) + first, Data(gradient) + first, sums);
    };
    SumParts(pool, Parts(x, coefficients.typed_data(), relu), 1.0, sum, result->typed_data());
  });
}

ffi::Error HandleNormalizeGradient(ffi::ThreadPool pool, bool relu, Maps x, Maps gradient, Floats coefficients,
                                   ffi::Result<Maps> result) {
  return Guarded([&] {
    Parts(x, coefficients.typed_data(), relu).Divide(pool, [&](int64_t, const batch_norm::Rows& rows, int64_t first) {
      batch_norm::Gradient(rows, Data(x) + first, Data(gradient) + first, Data(result) + first);
    });
  });
}

}  // namespace

// Whether the processor has instructions for products of bfloat16 (AVX512_BF16 or AMX) that oneDNN takes.
extern "C" bool inception_jax_has_bfloat16() {
  return (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
}

// Bytes of a packed kernel, as the call that packs it wants its result; 0: the kernel is taken as it is; -1: oneDNN
// refuses. numbers: sizes of the maps without their channels, of the kernel, the window, and the number of threads.
extern "C" int64_t inception_jax_packed_bytes(const int64_t* numbers, bool bfloat16, bool bfloat16_kernel, bool filters,
                                              bool scales, bool relu) {
  const int threads = omp_get_max_threads();  // of the caller's thread, which is Python's
  int64_t bytes = -1;
  try {
    const dnnl_data_type_t kernel_type = bfloat16_kernel ? dnnl_bf16 : dnnl_f32;
    bytes = PackedBytes(ForwardKey({numbers, 3}, bfloat16, Sizes(numbers + 3, numbers + 7), kernel_type,
                                   {numbers + 7, 6}, numbers[13], scales, relu),
                        filters);
  } catch (const std::exception&) {
  }
  omp_set_num_threads(threads);
  return bytes;
}

// window: size, stride, pixels before the map: above and to the left.
XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_max_pool, HandleMaxPool,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("window")
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_max_pool_gradient, HandleMaxPoolGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("window")
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_convolution, HandleConvolution,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("kind")
                                  .Attr<ffi::Span<const int64_t>>("window")
                                  .Attr<bool>("filters")
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_scaled_convolution, HandleScaledConvolution,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("window")
                                  .Attr<bool>("relu")
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Floats>()
                                  .Ret<Buffer>());

auto BindPacked(const char* sizes, const char* bfloat16) {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<ffi::Span<const int64_t>>(sizes)
      .Attr<bool>(bfloat16)
      .Attr<ffi::Span<const int64_t>>("window")
      .Attr<int64_t>("threads")
      .Attr<bool>("filters")
      .Attr<bool>("scales")
      .Attr<bool>("relu")
      .Arg<Buffer>();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_pack, HandlePack, BindPacked("maps", "bfloat16").Ret<Bytes>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_packed_convolution, HandlePackedConvolution,
                              BindPacked("kernel", "bfloat16_kernel").Arg<Buffer>().Arg<Floats>().Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_batch_norm_moments, HandleMoments,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Maps>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_batch_norm, HandleNormalize,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("relu")
                                  .Arg<Maps>()
                                  .Arg<Floats>()
                                  .Ret<Maps>());

auto BindGradient() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<bool>("relu").Arg<Maps>().Arg<Maps>().Arg<Floats>();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_batch_norm_gradient_sums, HandleGradientSums, BindGradient().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_batch_norm_gradient, HandleNormalizeGradient, BindGradient().Ret<Maps>());
