// Convolutions of float32 images by oneDNN, as a call of a compiled program on CPUs (XLA's foreign function interface).
//
// `onednn.py` compiles this file, loads it and describes the call. The batch is divided into parts, which XLA's own
// threads take one after the other: oneDNN itself runs each on one thread, so that no second pool of threads competes.
// A batch of fewer images than threads leaves threads without work.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "oneapi/dnnl/dnnl.h"
#include "xla/ffi/api/ffi.h"

extern "C" void omp_set_num_threads(int);  // of the OpenMP library that oneDNN itself is linked with

namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::Buffer<ffi::F32>;
using Sizes = std::vector<int64_t>;

constexpr int kPartsPerThread = 4;  // so that a thread that comes late finds work
constexpr int kMostSums = 16;       // partial sums of a kernel's gradient, each as large as it
constexpr size_t kAlignment = 64;   // bytes; a cache line

enum Kind : int64_t { kForward = 0, kInputGradient = 1, kKernelGradient = 2 };

void Check(dnnl_status_t status, const char* what) {
  if (status != dnnl_success) throw std::runtime_error(std::string(what) + ": status " + std::to_string(status));
}
#define CHECK_DNNL(call) Check(call, #call)

// Layers with equal keys share their compiled convolution.
struct Key {
  int64_t kind;
  Sizes x, kernel, y, strides, pads;  // sizes NHWC, HWIO, NHWC; pads: top, bottom, left, right
  bool operator<(const Key& other) const {
    return std::tie(kind, x, kernel, y, strides, pads) <
           std::tie(other.kind, other.x, other.kernel, other.y, other.strides, other.pads);
  }
};

// What oneDNN compiled for one key; it holds no data, so several threads use it at a time. Never freed.
struct Convolution {
  dnnl_primitive_t run = nullptr;
  dnnl_primitive_t reorder = nullptr;  // between the kernel in HWIO and in oneDNN's layout; null: they are equal
  dnnl_memory_desc_t x, kernel, packed, y, scratch;
  size_t packed_bytes = 0, scratch_bytes = 0;
};

dnnl_engine_t Engine() {
  static dnnl_engine_t engine = [] {
    dnnl_engine_t made;
    CHECK_DNNL(dnnl_engine_create(&made, dnnl_cpu, 0));
    return made;
  }();
  return engine;
}

dnnl_stream_t Stream() {
  thread_local dnnl_stream_t stream = [] {
    dnnl_stream_t made;
    CHECK_DNNL(dnnl_stream_create(&made, Engine(), dnnl_stream_default_flags));
    return made;
  }();
  return stream;
}

// Memory that is kept for the next calls.
class Workspace {
 public:
  ~Workspace() { std::free(data_); }
  char* Get(size_t bytes) {
    if (bytes > bytes_) {
      std::free(data_);
      data_ = nullptr;
      bytes_ = 0;
      size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
      if (!(data_ = static_cast<char*>(std::aligned_alloc(kAlignment, rounded)))) throw std::bad_alloc();
      bytes_ = rounded;
    }
    return data_;
  }

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

dnnl_memory_desc_t Description(const dnnl_dims_t sizes, dnnl_format_tag_t layout) {
  dnnl_memory_desc_t made;
  CHECK_DNNL(dnnl_memory_desc_create_with_tag(&made, 4, sizes, dnnl_f32, layout));
  return made;
}

dnnl_memory_desc_t Images(const Sizes& nhwc) {
  const dnnl_dims_t sizes = {nhwc[0], nhwc[3], nhwc[1], nhwc[2]};
  return Description(sizes, dnnl_acdb);
}

// The memory of one call; the next call that begins takes it over.
class Lease {
 public:
  Lease() {
    std::lock_guard<std::mutex> lock(Mutex());
    if (Free().empty()) Free().push_back(std::make_unique<Workspace>());
    workspace_ = std::move(Free().back());
    Free().pop_back();
  }
  ~Lease() {
    std::lock_guard<std::mutex> lock(Mutex());
    Free().push_back(std::move(workspace_));
  }
  Workspace* operator->() { return workspace_.get(); }

 private:
  static std::mutex& Mutex() {
    static auto* mutex = new std::mutex;
    return *mutex;
  }
  static std::vector<std::unique_ptr<Workspace>>& Free() {
    static auto* free = new std::vector<std::unique_ptr<Workspace>>;
    return *free;
  }
  std::unique_ptr<Workspace> workspace_;
};

Convolution* Compile(const Key& key) {
  omp_set_num_threads(1);
  auto* made = new Convolution;
  const dnnl_dims_t sizes = {key.kernel[3], key.kernel[2], key.kernel[0], key.kernel[1]};
  const dnnl_dims_t strides = {key.strides[0], key.strides[1]}, dilation = {0, 0};
  const dnnl_dims_t low = {key.pads[0], key.pads[2]}, high = {key.pads[1], key.pads[3]};
  made->x = Images(key.x);
  made->y = Images(key.y);
  made->kernel = Description(sizes, dnnl_cdba);
  dnnl_memory_desc_t any = Description(sizes, dnnl_format_tag_any);
  dnnl_primitive_attr_t attributes;
  CHECK_DNNL(dnnl_primitive_attr_create(&attributes));
  CHECK_DNNL(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
  dnnl_primitive_desc_t forward, chosen;
  CHECK_DNNL(dnnl_convolution_forward_primitive_desc_create(&forward, Engine(), dnnl_forward_training,
                                                            dnnl_convolution_direct, made->x, any, nullptr, made->y,
                                                            strides, dilation, low, high, attributes));
  chosen = forward;
  if (key.kind == kInputGradient)
    CHECK_DNNL(dnnl_convolution_backward_data_primitive_desc_create(&chosen, Engine(), dnnl_convolution_direct,
                                                                    made->x, any, made->y, strides, dilation, low,
                                                                    high, forward, attributes));
  if (key.kind == kKernelGradient)
    CHECK_DNNL(dnnl_convolution_backward_weights_primitive_desc_create(&chosen, Engine(), dnnl_convolution_direct,
                                                                       made->x, any, nullptr, made->y, strides,
                                                                       dilation, low, high, forward, attributes));
  CHECK_DNNL(dnnl_primitive_create(&made->run, chosen));
  dnnl_query_t which = key.kind == kKernelGradient ? dnnl_query_diff_weights_md : dnnl_query_weights_md;
  CHECK_DNNL(dnnl_memory_desc_clone(&made->packed, dnnl_primitive_desc_query_md(chosen, which, 0)));
  CHECK_DNNL(
      dnnl_memory_desc_clone(&made->scratch, dnnl_primitive_desc_query_md(chosen, dnnl_query_scratchpad_md, 0)));
  made->packed_bytes = dnnl_memory_desc_get_size(made->packed);
  made->scratch_bytes = dnnl_memory_desc_get_size(made->scratch);
  if (!dnnl_memory_desc_equal(made->packed, made->kernel)) {
    auto from = key.kind == kKernelGradient ? made->packed : made->kernel;
    auto to = key.kind == kKernelGradient ? made->kernel : made->packed;
    dnnl_primitive_desc_t reorder;
    CHECK_DNNL(dnnl_reorder_primitive_desc_create(&reorder, from, Engine(), to, Engine(), nullptr));
    CHECK_DNNL(dnnl_primitive_create(&made->reorder, reorder));
    dnnl_primitive_desc_destroy(reorder);
  }
  if (chosen != forward) dnnl_primitive_desc_destroy(chosen);
  dnnl_primitive_desc_destroy(forward);
  dnnl_primitive_attr_destroy(attributes);
  dnnl_memory_desc_destroy(any);
  return made;
}

const Convolution& Compiled(const Key& key) {
  static std::mutex mutex;
  static auto* compiled = new std::map<Key, Convolution*>;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = compiled->find(key);
  if (found == compiled->end()) found = compiled->emplace(key, Compile(key)).first;
  return *found->second;
}

// A description with its data, for the time of one call.
class Memory {
 public:
  Memory(const_dnnl_memory_desc_t description, void* data) {
    CHECK_DNNL(dnnl_memory_create(&memory_, description, Engine(), data));
  }
  ~Memory() { dnnl_memory_destroy(memory_); }
  Memory(const Memory&) = delete;
  operator dnnl_memory_t() const { return memory_; }

 private:
  dnnl_memory_t memory_;
};

void Reorder(const Convolution& convolution, const_dnnl_memory_desc_t from, void* source, const_dnnl_memory_desc_t to,
             void* target) {
  Memory source_memory(from, source), target_memory(to, target);
  dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, source_memory}, {DNNL_ARG_TO, target_memory}};
  CHECK_DNNL(dnnl_primitive_execute(convolution.reorder, Stream(), 2, arguments));
  CHECK_DNNL(dnnl_stream_wait(Stream()));
}

void Run(const Key& key, const Convolution& convolution, float* x, void* kernel, float* y) {
  thread_local Workspace scratch;
  omp_set_num_threads(1);
  Memory x_memory(convolution.x, x), kernel_memory(convolution.packed, kernel), y_memory(convolution.y, y);
  Memory scratch_memory(convolution.scratch, scratch.Get(std::max<size_t>(convolution.scratch_bytes, 1)));
  const bool of_input = key.kind == kInputGradient, of_kernel = key.kind == kKernelGradient;
  dnnl_exec_arg_t arguments[] = {{of_input ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, x_memory},
                                 {of_kernel ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, kernel_memory},
                                 {key.kind == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, y_memory},
                                 {DNNL_ARG_SCRATCHPAD, scratch_memory}};
  CHECK_DNNL(dnnl_primitive_execute(convolution.run, Stream(), 4, arguments));
  CHECK_DNNL(dnnl_stream_wait(Stream()));
}

// Calls work(0) to work(count - 1) on the caller's thread and those of the pool that are idle. The caller takes every
// index that nobody else has taken, so it never waits for a task that has not begun.
template <typename Work>
void Divide(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct State {
    std::atomic<int64_t> next{0};
    int64_t finished = 0;
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable all_finished;
  };
  auto state = std::make_shared<State>();
  // A task that begins after the last index was taken touches the shared state alone.
  auto take = [state, count, work = &work] {
    for (int64_t index; (index = state->next++) < count;) {
      std::exception_ptr error;
      try {
        (*work)(index);
      } catch (...) {
        error = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(state->mutex);
      if (error) state->error = error;
      if (++state->finished == count) state->all_finished.notify_all();
    }
  };
  int64_t helpers = std::min<int64_t>(count, pool.num_threads()) - 1;
  try {
    for (int64_t i = 0; i < helpers; i++) pool.Schedule([take] { take(); });
  } catch (const std::bad_alloc&) {  // fewer helpers, then
  }
  take();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_finished.wait(lock, [&] { return state->finished == count; });
  if (state->error) std::rethrow_exception(state->error);
}

Sizes SizesOf(ffi::Span<const int64_t> span) { return Sizes(span.begin(), span.end()); }

int64_t Product(const Sizes& sizes, size_t first) {
  int64_t product = 1;
  for (size_t axis = first; axis < sizes.size(); axis++) product *= sizes[axis];
  return product;
}

// forward: (x, kernel) -> y; input gradient: (gradient of y, kernel) -> of x; kernel gradient: (x, gradient of y) -> of
// the kernel. window: strides, then pads.
void Convolve(ffi::ThreadPool& pool, int64_t kind, ffi::Span<const int64_t> window, Buffer first, Buffer second,
              Buffer result) {
  Buffer &x = kind == kInputGradient ? result : first, &kernel = kind == kKernelGradient ? result : second;
  Buffer& y = kind == kForward ? result : kind == kInputGradient ? first : second;
  Sizes all = SizesOf(window);
  Key key{kind,
          SizesOf(x.dimensions()),
          SizesOf(kernel.dimensions()),
          SizesOf(y.dimensions()),
          Sizes(all.begin(), all.begin() + 2),
          Sizes(all.begin() + 2, all.end())};
  const int64_t images = key.x[0], threads = std::max<int64_t>(1, pool.num_threads());
  // Each part of a kernel's gradient is a sum of its own; the order in which they are added is fixed.
  const bool sums = kind == kKernelGradient;
  const int64_t wanted = sums ? std::min<int64_t>(threads, kMostSums) : kPartsPerThread * threads;
  const int64_t per_part = std::max<int64_t>(1, images / wanted + (images % wanted != 0));
  const int64_t parts = (images + per_part - 1) / per_part;
  key.x[0] = key.y[0] = per_part;
  const Convolution& whole = Compiled(key);
  Key last_key = key;  // the last part may have fewer images
  last_key.x[0] = last_key.y[0] = images - (parts - 1) * per_part;
  const Convolution& last = Compiled(last_key);
  // oneDNN may take another layout of the kernel for another number of images.
  const bool differs = !dnnl_memory_desc_equal(whole.packed, last.packed);

  const int64_t x_step = Product(key.x, 0), y_step = Product(key.y, 0), weights = Product(key.kernel, 0);
  const size_t largest = std::max(std::max(whole.packed_bytes, last.packed_bytes), weights * sizeof(float));
  const size_t step = (largest + kAlignment - 1) / kAlignment * kAlignment;
  Lease workspace;
  char* memory = workspace->Get((sums ? parts + 1 : 2) * step);
  auto* x_data = static_cast<float*>(x.untyped_data());
  auto* y_data = static_cast<float*>(y.untyped_data());
  auto* kernel_data = static_cast<float*>(kernel.untyped_data());

  if (!sums) {
    auto pack = [&](const Convolution& convolution, char* place) {
      if (!convolution.reorder) return static_cast<void*>(kernel_data);
      Reorder(convolution, convolution.kernel, kernel_data, convolution.packed, place);
      return static_cast<void*>(place);
    };
    void* packed = pack(whole, memory);
    void* packed_last = differs ? pack(last, memory + step) : packed;
    Divide(pool, parts, [&](int64_t part) {
      const bool is_last = part == parts - 1;
      Run(is_last ? last_key : key, is_last ? last : whole, x_data + part * x_step, is_last ? packed_last : packed,
          y_data + part * y_step);
    });
    return;
  }

  Divide(pool, parts, [&](int64_t part) {
    const bool is_last = part == parts - 1;
    Run(is_last ? last_key : key, is_last ? last : whole, x_data + part * x_step, memory + part * step,
        y_data + part * y_step);
  });
  auto add = [](float* sum, const float* other, int64_t count) {
    for (int64_t i = 0; i < count; i++) sum[i] += other[i];
  };
  auto unpack = [&](const Convolution& convolution, char* place, float* target) {
    if (convolution.reorder)
      Reorder(convolution, convolution.packed, place, convolution.kernel, target);
    else
      std::copy_n(reinterpret_cast<float*>(place), weights, target);
  };
  const int64_t alike = differs ? parts - 1 : parts;
  for (int64_t part = 1; part < alike; part++)
    add(reinterpret_cast<float*>(memory), reinterpret_cast<float*>(memory + part * step),
        whole.packed_bytes / sizeof(float));
  unpack(whole, memory, kernel_data);
  if (differs) {
    auto* other = reinterpret_cast<float*>(memory + parts * step);
    unpack(last, memory + (parts - 1) * step, other);
    add(kernel_data, other, weights);
  }
}

ffi::Error Handle(ffi::ThreadPool pool, int64_t kind, ffi::Span<const int64_t> window, Buffer first, Buffer second,
                  ffi::Result<Buffer> result) {
  try {
    Convolve(pool, kind, window, first, second, *result);
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_convolution, Handle,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("kind")
                                  .Attr<ffi::Span<const int64_t>>("window")
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());
