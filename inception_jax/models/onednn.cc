// Convolutions of float32 and bfloat16 images by oneDNN, max pools and batch norm, as calls of a compiled program on
// CPUs (XLA's foreign function interface).
//
// `onednn.py` compiles this file, loads it and describes the call. The batch is divided into parts, which XLA's own
// threads take one after the other: oneDNN itself runs each on one thread, so that no second pool of threads competes.
// A batch of fewer images than threads leaves threads without work. Convolutions by Winograd's filtering (`winograd.h`)
// are divided into blocks of tiles instead; there oneDNN computes the products of matrices.

#include <algorithm>
#include <atomic>
#include <cfloat>
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

#include "batch_norm.h"
#include "max_pool.h"
#include "oneapi/dnnl/dnnl.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

extern "C" void omp_set_num_threads(int);  // of the OpenMP library that oneDNN itself is linked with

namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;  // float32 or bfloat16
using Maps = ffi::Buffer<ffi::BF16>;
using Floats = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::U8>;
using Sizes = std::vector<int64_t>;

constexpr int kPartsPerThread = 4;         // so that a thread that comes late finds work
constexpr int kMostSums = 16;              // partial sums of a kernel's gradient, each as large as it
constexpr size_t kAlignment = 64;          // bytes; a cache line
constexpr int64_t kSlice = 64;             // filters or channels of a part of a reorder, along the axis without blocks
constexpr int64_t kSmallKernel = 1 << 16;  // elements; smaller ones are not divided
constexpr int kMostGathered = 1 << 20;     // bytes of a map that a kernel's gradient gathers for each of its taps
constexpr int kPartElements = 1 << 15;     // of a map, about: a part of batch norm
constexpr int kBlockTiles = 64;            // of Winograd's filtering: about as many in a block of a map
constexpr int kGradientTiles = 196;        // and of a kernel's gradient, which sums over them

enum Kind : int64_t { kForward = 0, kInputGradient = 1, kKernelGradient = 2 };

// What follows a forward pass: the output times a factor and plus a shift, per channel, [2, channels]; then a ReLU.
struct After {
  float* coefficients = nullptr;  // null: nothing follows
  bool relu = false;
};

void Check(dnnl_status_t status, const char* what) {
  if (status != dnnl_success) throw std::runtime_error(std::string(what) + ": status " + std::to_string(status));
}
#define CHECK_DNNL(call) Check(call, #call)

// Layers with equal keys share their compiled convolution.
struct Key {
  int64_t kind;
  dnnl_data_type_t type, kernel_type;  // of the maps, and of the kernel in HWIO
  Sizes x, kernel, y, strides, pads;  // sizes NHWC, HWIO, NHWC; pads: top, bottom, left, right
  bool scales = false, relu = false;  // what follows: `After`
  auto Values() const { return std::tie(kind, type, kernel_type, x, kernel, y, strides, pads, scales, relu); }
  bool operator<(const Key& other) const { return Values() < other.Values(); }
};

// A part of a reorder: of some filters, or of some input channels.
struct Reorder {
  dnnl_memory_desc_t from, to, scratch;
  dnnl_primitive_t run;
};

// What oneDNN compiled for one key; it holds no data, so several threads use it at a time. Never freed.
struct Convolution {
  dnnl_primitive_t run = nullptr;
  std::vector<Reorder> reorders;  // between the kernel in HWIO and in oneDNN's layout and type; none: they are equal
  dnnl_memory_desc_t x, kernel, packed, y, scratch;
  dnnl_memory_desc_t per_channel;  // of the factors, and of the shifts: see `After`
  size_t packed_bytes = 0;
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

dnnl_memory_desc_t Description(const dnnl_dims_t sizes, dnnl_data_type_t type, dnnl_format_tag_t layout) {
  dnnl_memory_desc_t made;
  CHECK_DNNL(dnnl_memory_desc_create_with_tag(&made, 4, sizes, type, layout));
  return made;
}

dnnl_memory_desc_t Images(const Sizes& nhwc, dnnl_data_type_t type) {
  const dnnl_dims_t sizes = {nhwc[0], nhwc[3], nhwc[1], nhwc[2]};
  return Description(sizes, type, dnnl_acdb);
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

// Scratch memory is ours: a primitive with oneDNN's own may run on the thread alone that made it.
dnnl_primitive_attr_t Attributes() {
  dnnl_primitive_attr_t made;
  CHECK_DNNL(dnnl_primitive_attr_create(&made));
  CHECK_DNNL(dnnl_primitive_attr_set_scratchpad_mode(made, dnnl_scratchpad_mode_user));
  return made;
}

dnnl_memory_desc_t Scratch(const_dnnl_primitive_desc_t chosen) {
  dnnl_memory_desc_t made;
  CHECK_DNNL(dnnl_memory_desc_clone(&made, dnnl_primitive_desc_query_md(chosen, dnnl_query_scratchpad_md, 0)));
  return made;
}

// Divides a reorder of a kernel [filters, channels, rows, columns] along one of its first two axes, where oneDNN can.
std::vector<Reorder> Reorders(dnnl_memory_desc_t from, dnnl_memory_desc_t to, const dnnl_dims_t sizes, int axis) {
  std::vector<Reorder> made;
  for (int64_t first = 0; first < sizes[axis]; first += kSlice) {
    dnnl_dims_t part = {sizes[0], sizes[1], sizes[2], sizes[3]}, offsets = {0, 0, 0, 0};
    offsets[axis] = first;
    part[axis] = std::min(kSlice, sizes[axis] - first);
    made.push_back({from, to});
    if (sizes[0] * sizes[1] * sizes[2] * sizes[3] < kSmallKernel ||
        dnnl_memory_desc_create_submemory(&made.back().from, from, part, offsets) != dnnl_success ||
        dnnl_memory_desc_create_submemory(&made.back().to, to, part, offsets) != dnnl_success) {
      made.assign(1, {from, to});
      break;
    }
  }
  dnnl_primitive_attr_t attributes = Attributes();
  for (Reorder& reorder : made) {
    dnnl_primitive_desc_t chosen;
    CHECK_DNNL(dnnl_reorder_primitive_desc_create(&chosen, reorder.from, Engine(), reorder.to, Engine(), attributes));
    CHECK_DNNL(dnnl_primitive_create(&reorder.run, chosen));
    reorder.scratch = Scratch(chosen);
    dnnl_primitive_desc_destroy(chosen);
  }
  dnnl_primitive_attr_destroy(attributes);
  return made;
}

void AppendScale(dnnl_primitive_attr_t attributes, const_dnnl_memory_desc_t per_channel, bool relu) {
  dnnl_post_ops_t made;
  CHECK_DNNL(dnnl_post_ops_create(&made));
  CHECK_DNNL(dnnl_post_ops_append_binary(made, dnnl_binary_mul, per_channel));
  CHECK_DNNL(dnnl_post_ops_append_binary(made, dnnl_binary_add, per_channel));
  // x * min(max(x * the largest float, 0), 1): oneDNN's own ReLU makes 0 of a NaN. This one makes NaN of minus infinity.
  if (relu) CHECK_DNNL(dnnl_post_ops_append_eltwise(made, dnnl_eltwise_hardswish, FLT_MAX, 0));
  CHECK_DNNL(dnnl_primitive_attr_set_post_ops(attributes, made));
  dnnl_post_ops_destroy(made);
}

Convolution* Compile(const Key& key) {
  omp_set_num_threads(1);
  auto* made = new Convolution;
  const dnnl_dims_t sizes = {key.kernel[3], key.kernel[2], key.kernel[0], key.kernel[1]};
  const dnnl_dims_t strides = {key.strides[0], key.strides[1]}, dilation = {0, 0};
  const dnnl_dims_t low = {key.pads[0], key.pads[2]}, high = {key.pads[1], key.pads[3]};
  made->x = Images(key.x, key.type);
  made->y = Images(key.y, key.type);
  made->kernel = Description(sizes, key.kernel_type, dnnl_cdba);
  dnnl_memory_desc_t any = Description(sizes, key.type, dnnl_format_tag_any);
  dnnl_memory_desc_t any_sum = Description(sizes, dnnl_f32, dnnl_format_tag_any);  // is rounded when parts are added
  dnnl_primitive_attr_t attributes = Attributes();
  if (key.scales) {
    const dnnl_dims_t channels = {1, key.kernel[3], 1, 1};
    made->per_channel = Description(channels, dnnl_f32, dnnl_acdb);
    AppendScale(attributes, made->per_channel, key.relu);
  }
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
                                                                       made->x, any_sum, nullptr, made->y, strides,
                                                                       dilation, low, high, forward, attributes));
  CHECK_DNNL(dnnl_primitive_create(&made->run, chosen));
  dnnl_query_t which = key.kind == kKernelGradient ? dnnl_query_diff_weights_md : dnnl_query_weights_md;
  CHECK_DNNL(dnnl_memory_desc_clone(&made->packed, dnnl_primitive_desc_query_md(chosen, which, 0)));
  made->scratch = Scratch(chosen);
  made->packed_bytes = dnnl_memory_desc_get_size(made->packed);
  if (!dnnl_memory_desc_equal(made->packed, made->kernel)) {
    auto from = key.kind == kKernelGradient ? made->packed : made->kernel;
    auto to = key.kind == kKernelGradient ? made->kernel : made->packed;
    // Along the axis that oneDNN does not block.
    made->reorders = Reorders(from, to, sizes, key.kind == kInputGradient ? 0 : 1);
  }
  if (chosen != forward) dnnl_primitive_desc_destroy(chosen);
  dnnl_primitive_desc_destroy(forward);
  dnnl_primitive_attr_destroy(attributes);
  dnnl_memory_desc_destroy(any);
  dnnl_memory_desc_destroy(any_sum);
  return made;
}

// The products of Winograd's filtering: `count` matrices [rows, inner] with as many [inner, columns].
struct ProductKey {
  int64_t count, rows, inner, columns;
  bool of_transposed;  // the first matrices are given as [inner, rows]
  bool accumulates;    // adds to the result
  bool operator<(const ProductKey& other) const {
    return std::tie(count, rows, inner, columns, of_transposed, accumulates) <
           std::tie(other.count, other.rows, other.inner, other.columns, other.of_transposed, other.accumulates);
  }
};

// The product of a matrix of bfloat16 that is given transposed, [inner, rows] with `step` elements from one of `inner`
// to the next, with one of [inner, columns].
struct TransposedKey {
  int64_t rows, inner, columns, step;
  dnnl_data_type_t type;  // of the result
  bool operator<(const TransposedKey& other) const {
    return std::tie(rows, inner, columns, step, type) <
           std::tie(other.rows, other.inner, other.columns, other.step, other.type);
  }
};

// What oneDNN compiled for one key; as `Convolution`.
struct Products {
  dnnl_primitive_t run;
  dnnl_memory_desc_t first, second, result, scratch;
};

void Finish(Products* made, dnnl_primitive_attr_t attributes) {
  dnnl_primitive_desc_t chosen;
  CHECK_DNNL(dnnl_matmul_primitive_desc_create(&chosen, Engine(), made->first, made->second, nullptr, made->result,
                                               attributes));
  CHECK_DNNL(dnnl_primitive_create(&made->run, chosen));
  made->scratch = Scratch(chosen);
  dnnl_primitive_desc_destroy(chosen);
  dnnl_primitive_attr_destroy(attributes);
}

Products* Compile(const ProductKey& key) {
  omp_set_num_threads(1);
  auto* made = new Products;
  auto describe = [&](int64_t rows, int64_t columns, bool transposed) {
    const dnnl_dims_t sizes = {key.count, rows, columns};
    const dnnl_dims_t strides = {winograd::Step(rows, columns), transposed ? 1 : columns, transposed ? rows : 1};
    dnnl_memory_desc_t description;
    CHECK_DNNL(dnnl_memory_desc_create_with_strides(&description, 3, sizes, dnnl_f32, strides));
    return description;
  };
  made->first = describe(key.rows, key.inner, key.of_transposed);
  made->second = describe(key.inner, key.columns, false);
  made->result = describe(key.rows, key.columns, false);
  dnnl_primitive_attr_t attributes = Attributes();
  if (key.accumulates) {
    dnnl_post_ops_t sum;
    CHECK_DNNL(dnnl_post_ops_create(&sum));
    CHECK_DNNL(dnnl_post_ops_append_sum(sum, 1.0f, 0, dnnl_data_type_undef));
    CHECK_DNNL(dnnl_primitive_attr_set_post_ops(attributes, sum));
    dnnl_post_ops_destroy(sum);
  }
  Finish(made, attributes);
  return made;
}

Products* Compile(const TransposedKey& key) {
  omp_set_num_threads(1);
  auto* made = new Products;
  auto describe = [](dnnl_data_type_t type, int64_t rows, int64_t columns, int64_t row_step, int64_t column_step) {
    const dnnl_dims_t sizes = {rows, columns}, strides = {row_step, column_step};
    dnnl_memory_desc_t description;
    CHECK_DNNL(dnnl_memory_desc_create_with_strides(&description, 2, sizes, type, strides));
    return description;
  };
  made->first = describe(dnnl_bf16, key.rows, key.inner, 1, key.step);
  made->second = describe(dnnl_bf16, key.inner, key.columns, key.columns, 1);
  made->result = describe(key.type, key.rows, key.columns, key.columns, 1);
  Finish(made, Attributes());
  return made;
}

// The reorder of a kernel's gradient from the layout of one convolution to that of another.
struct LayoutKey {
  Key from, to;
  bool operator<(const LayoutKey& other) const { return std::tie(from, to) < std::tie(other.from, other.to); }
};

std::vector<Reorder>* Compile(const LayoutKey& key);

// What was compiled for a key; the first call compiles.
template <typename AnyKey>
const auto& Compiled(const AnyKey& key) {
  static std::mutex mutex;
  static auto* compiled = new std::map<AnyKey, decltype(Compile(key))>;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = compiled->find(key);
  if (found == compiled->end()) found = compiled->emplace(key, Compile(key)).first;
  return *found->second;
}

std::vector<Reorder>* Compile(const LayoutKey& key) {
  const dnnl_dims_t sizes = {key.to.kernel[3], key.to.kernel[2], key.to.kernel[0], key.to.kernel[1]};
  return new std::vector<Reorder>(Reorders(Compiled(key.from).packed, Compiled(key.to).packed, sizes, 1));
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

// Runs what was compiled, on this thread: `operands` are numbers of arguments, descriptions and data.
struct Operand {
  int argument;
  const_dnnl_memory_desc_t description;
  void* data;
};

void Execute(const_dnnl_primitive_t run, const_dnnl_memory_desc_t scratch, const std::vector<Operand>& operands) {
  thread_local Workspace workspace;
  omp_set_num_threads(1);
  std::vector<std::unique_ptr<Memory>> memories;
  std::vector<dnnl_exec_arg_t> arguments;
  auto add = [&](int argument, const_dnnl_memory_desc_t description, void* data) {
    memories.push_back(std::make_unique<Memory>(description, data));
    arguments.push_back({argument, *memories.back()});
  };
  for (const Operand& operand : operands) add(operand.argument, operand.description, operand.data);
  add(DNNL_ARG_SCRATCHPAD, scratch, workspace.Get(std::max<size_t>(dnnl_memory_desc_get_size(scratch), 1)));
  CHECK_DNNL(dnnl_primitive_execute(run, Stream(), arguments.size(), arguments.data()));
  CHECK_DNNL(dnnl_stream_wait(Stream()));
}

void Run(const Key& key, const Convolution& convolution, void* x, void* kernel, void* y, const After& after = {}) {
  const bool of_input = key.kind == kInputGradient, of_kernel = key.kind == kKernelGradient;
  std::vector<Operand> operands = {{of_input ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, convolution.x, x},
                                   {of_kernel ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, convolution.packed, kernel},
                                   {key.kind == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, convolution.y, y}};
  for (int which = 0; key.scales && which < 2; which++)  // factors, shifts
    operands.push_back({DNNL_ARG_ATTR_MULTIPLE_POST_OP(which) | DNNL_ARG_SRC_1, convolution.per_channel,
                        after.coefficients + which * key.kernel[3]});
  Execute(convolution.run, convolution.scratch, operands);
}

void Run(const Products& products, void* first, void* second, void* result) {
  Execute(products.run, products.scratch,
          {{DNNL_ARG_SRC, products.first, first},
           {DNNL_ARG_WEIGHTS, products.second, second},
           {DNNL_ARG_DST, products.result, result}});
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

void Run(ffi::ThreadPool& pool, const std::vector<Reorder>& reorders, void* source, void* target) {
  Divide(pool, reorders.size(), [&](int64_t part) {
    const Reorder& reorder = reorders[part];
    Execute(reorder.run, reorder.scratch,
            {{DNNL_ARG_FROM, reorder.from, source}, {DNNL_ARG_TO, reorder.to, target}});
  });
}

void CheckEqual(const Buffer& one, const Buffer& other) {
  const auto type = one.element_type();
  if (type != other.element_type() || (type != ffi::DataType::F32 && type != ffi::DataType::BF16))
    throw std::runtime_error("expected arrays of float32, or of bfloat16");
}

Sizes SizesOf(ffi::Span<const int64_t> span) { return Sizes(span.begin(), span.end()); }

int64_t Product(const Sizes& sizes, size_t first) {
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
void TransformKernel(ffi::ThreadPool& pool, const winograd::Filtering& filtering, const Key& key, const float* kernel,
                     float* matrices) {
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
void FilterMaps(ffi::ThreadPool& pool, const winograd::Filtering& filtering, const Key& key, float* x, float* kernel,
                bool is_packed, float* y) {
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
void FilterKernel(ffi::ThreadPool& pool, const winograd::Filtering& filtering, const Key& key, float* x,
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
bool TakesProduct(const Key& key) {
  const bool is_pointwise = key.kernel[0] * key.kernel[1] == 1;
  const int64_t gathered_bytes = Product(key.y, 0) / key.y[3] * key.kernel[2] * 2;  // for one tap
  return key.kind == kKernelGradient && key.type == dnnl_bf16 && key.kernel[2] % 16 == 0 && key.kernel[3] % 16 == 0 &&
         (is_pointwise || gathered_bytes <= kMostGathered);
}

// The gradient of a kernel as a product: pixels under its taps, [pixels of y, taps * inputs], transposed, with the
// gradient of y, [its pixels, outputs]. Each thread makes rows of the result, so nothing is added up.
void MultiplyKernel(ffi::ThreadPool& pool, const Key& key, uint16_t* x, char* kernel, uint16_t* y) {
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
              const bool is_inside =
                  from_row >= 0 && from_row < key.x[1] && from_column >= 0 && from_column < key.x[2];
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

Sizes Part(ffi::Span<const int64_t> window, int first, int last) {
  return Sizes(window.begin() + first, window.begin() + last);
}

dnnl_data_type_t TypeOf(const Buffer& one) {
  return one.element_type() == ffi::DataType::BF16 ? dnnl_bf16 : dnnl_f32;
}

const winograd::Filtering& FilteringOf(const Key& key) {
  const winograd::Filtering* found = winograd::Find(key.kernel[0], key.kernel[1]);
  if (!found) throw std::runtime_error("no Winograd filtering for this size of the kernel");
  return *found;
}

// A kernel that was laid out before: what it was in HWIO.
struct Packed {
  Sizes sizes;
  dnnl_data_type_t type;
};

// Kernels are packed for a forward pass of one image, whatever the batch and the number of threads.
Key OfOneImage(Key key) {
  key.x[0] = key.y[0] = 1;
  return key;
}

// Of the kernel of a key of one image; 0: it is taken as it is.
size_t PackedBytes(const Key& key, bool filters) {
  if (filters) return FilteringOf(key).Size(key.kernel[2], key.kernel[3]) * sizeof(float);
  const Convolution& convolution = Compiled(key);
  return convolution.reorders.empty() ? 0 : convolution.packed_bytes;
}

void Pack(ffi::ThreadPool& pool, const Key& key, bool filters, void* kernel, void* packed) {
  if (filters)
    TransformKernel(pool, FilteringOf(key), key, static_cast<float*>(kernel), static_cast<float*>(packed));
  else
    Run(pool, Compiled(key).reorders, kernel, packed);
}

// forward: (x, kernel) -> y; input gradient: (gradient of y, kernel) -> of x; kernel gradient: (x, gradient of y) -> of
// the kernel, which is of float32 or of the maps' type. window: strides, then pads. filters: by Winograd's filtering
// (float32, stride 1). after: of forward without it. packed: not null where the kernel of forward is.
void Convolve(ffi::ThreadPool& pool, int64_t kind, ffi::Span<const int64_t> window, bool filters, Buffer first,
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
          Part(window, 0, 2),
          Part(window, 2, 6),
          after.coefficients != nullptr,
          after.relu};
  const Key one = OfOneImage(key);
  if (packed && (kernel.element_type() != ffi::DataType::U8 || PackedBytes(one, filters) != kernel.element_count()))
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

  const int64_t bytes = dnnl_data_type_size(type);
  const int64_t x_step = Product(key.x, 0) * bytes, y_step = Product(key.y, 0) * bytes;
  const size_t largest = std::max(whole.packed_bytes, last.packed_bytes);
  const size_t step = (largest + kAlignment - 1) / kAlignment * kAlignment;
  Lease workspace;
  char* memory = workspace->Get((sums ? parts + 1 : 2) * step);
  auto* x_data = static_cast<char*>(x.untyped_data());
  auto* y_data = static_cast<char*>(y.untyped_data());
  void* kernel_data = kernel.untyped_data();

  if (!sums) {
    auto lay_out = [&](const Key& part_key, const Convolution& convolution, char* place) {
      const bool fits = packed && dnnl_memory_desc_equal(Compiled(one).packed, convolution.packed);
      if (fits || (!packed && convolution.reorders.empty())) return kernel_data;
      Run(pool, packed ? Compiled(LayoutKey{one, part_key}) : convolution.reorders, kernel_data, place);
      return static_cast<void*>(place);
    };
    void* laid_out = lay_out(key, whole, memory);
    void* laid_out_last = differs ? lay_out(last_key, last, memory + step) : laid_out;
    Divide(pool, parts, [&](int64_t part) {
      const bool is_last = part == parts - 1;
      Run(is_last ? last_key : key, is_last ? last : whole, x_data + part * x_step, is_last ? laid_out_last : laid_out,
          y_data + part * y_step, after);
    });
    return;
  }

  Divide(pool, parts, [&](int64_t part) {
    const bool is_last = part == parts - 1;
    Run(is_last ? last_key : key, is_last ? last : whole, x_data + part * x_step, memory + part * step,
        y_data + part * y_step);
  });
  if (differs) Run(pool, Compiled(LayoutKey{last_key, key}), memory + (parts - 1) * step, memory + parts * step);
  auto* sum = reinterpret_cast<float*>(memory);
  const int64_t count = whole.packed_bytes / sizeof(float);
  const int64_t slices = count < kSmallKernel ? 1 : kPartsPerThread * threads;
  Divide(pool, slices, [&](int64_t slice) {
    for (int64_t part = 1; part < parts; part++) {
      auto* other = reinterpret_cast<float*>(memory + (part + (differs && part == parts - 1)) * step);
      for (int64_t i = slice * count / slices; i < (slice + 1) * count / slices; i++) sum[i] += other[i];
    }
  });
  if (whole.reorders.empty())
    std::copy_n(sum, count, static_cast<float*>(kernel_data));
  else
    Run(pool, whole.reorders, sum, kernel_data);
}

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

// The key of a forward pass of one image [rows, columns, channels] with a kernel [rows, columns, channels, filters].
Key KeyOfImage(ffi::Span<const int64_t> image, bool bfloat16, const Sizes& kernel, dnnl_data_type_t kernel_type,
               ffi::Span<const int64_t> window, bool scales, bool relu) {
  Key key{kForward, bfloat16 ? dnnl_bf16 : dnnl_f32, kernel_type, {1, image[0], image[1], kernel[2]}, kernel,
          {1, 0, 0, kernel[3]}, Part(window, 0, 2), Part(window, 2, 6), scales, relu};
  for (int axis = 0; axis < 2; axis++)
    key.y[axis + 1] = (image[axis] + key.pads[2 * axis] + key.pads[2 * axis + 1] - kernel[axis]) / key.strides[axis] + 1;
  return key;
}

ffi::Error HandlePack(ffi::ThreadPool pool, ffi::Span<const int64_t> image, bool bfloat16,
                      ffi::Span<const int64_t> window, bool filters, bool scales, bool relu, Buffer kernel,
                      ffi::Result<Bytes> packed) {
  return Guarded([&] {
    const Key key = KeyOfImage(image, bfloat16, SizesOf(kernel.dimensions()), TypeOf(kernel), window, scales, relu);
    if (PackedBytes(key, filters) != packed->element_count())
      throw std::runtime_error("a packed kernel has another size in this process");
    Pack(pool, key, filters, kernel.untyped_data(), packed->untyped_data());
  });
}

ffi::Error HandlePackedConvolution(ffi::ThreadPool pool, ffi::Span<const int64_t> kernel, bool bfloat16_kernel,
                                   ffi::Span<const int64_t> window, bool filters, bool scales, bool relu, Buffer x,
                                   Buffer packed, Floats coefficients, ffi::Result<Buffer> y) {
  return Guarded([&] {
    const Packed was{SizesOf(kernel), bfloat16_kernel ? dnnl_bf16 : dnnl_f32};
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
// refuses. numbers: sizes of the image without its channels, of the kernel, and the window.
extern "C" int64_t inception_jax_packed_bytes(const int64_t* numbers, bool bfloat16, bool bfloat16_kernel, bool filters,
                                              bool scales, bool relu) {
  try {
    return PackedBytes(KeyOfImage({numbers, 2}, bfloat16, Sizes(numbers + 2, numbers + 6),
                                  bfloat16_kernel ? dnnl_bf16 : dnnl_f32, {numbers + 6, 6}, scales, relu),
                       filters);
  } catch (const std::exception&) {
    return -1;
  }
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_pack, HandlePack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("image")
                                  .Attr<bool>("bfloat16")
                                  .Attr<ffi::Span<const int64_t>>("window")
                                  .Attr<bool>("filters")
                                  .Attr<bool>("scales")
                                  .Attr<bool>("relu")
                                  .Arg<Buffer>()
                                  .Ret<Bytes>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(inception_jax_packed_convolution, HandlePackedConvolution,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("kernel")
                                  .Attr<bool>("bfloat16_kernel")
                                  .Attr<ffi::Span<const int64_t>>("window")
                                  .Attr<bool>("filters")
                                  .Attr<bool>("scales")
                                  .Attr<bool>("relu")
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Floats>()
                                  .Ret<Buffer>());

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
