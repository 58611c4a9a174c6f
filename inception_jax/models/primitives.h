// What oneDNN compiles for the calls of `onednn.cc`, once per key, and runs on one thread; the memory of a call.

#ifndef INCEPTION_JAX_PRIMITIVES_H_
#define INCEPTION_JAX_PRIMITIVES_H_

#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "oneapi/dnnl/dnnl.h"
#include "winograd.h"

// Of the OpenMP library that oneDNN itself is linked with.
extern "C" void omp_set_num_threads(int);
extern "C" int omp_get_max_threads();

namespace onednn {

constexpr size_t kAlignment = 64;          // bytes; a cache line
constexpr int64_t kSlice = 64;             // filters or channels of a part of a reorder, along the axis without blocks
constexpr int64_t kSmallKernel = 1 << 16;  // elements; smaller ones are not divided

using Sizes = std::vector<int64_t>;

enum Kind : int64_t { kForward = 0, kInputGradient = 1, kKernelGradient = 2 };

// What follows a forward pass: the output times a factor and plus a shift, per channel, [2, channels]; then a ReLU.
struct After {
  float* coefficients = nullptr;  // null: nothing follows
  bool relu = false;
};

inline void Check(dnnl_status_t status, const char* what) {
  if (status != dnnl_success) throw std::runtime_error(std::string(what) + ": status " + std::to_string(status));
}
#define CHECK_DNNL(call) Check(call, #call)

// Layers with equal keys share their compiled convolution.
struct Key {
  int64_t kind;
  dnnl_data_type_t type, kernel_type;  // of the maps, and of the kernel in HWIO
  Sizes x, kernel, y, strides, pads;   // sizes NHWC, HWIO, NHWC; pads: top, bottom, left, right
  bool scales = false, relu = false;   // what follows: `After`
  auto Values() const { return std::tie(kind, type, kernel_type, x, kernel, y, strides, pads, scales, relu); }
  bool operator<(const Key& other) const { return Values() < other.Values(); }
  // Each channel of x has kernel[3] filters of its own.
  bool IsDepthwise() const { return y[3] != kernel[3]; }
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

inline dnnl_engine_t Engine() {
  static dnnl_engine_t engine = [] {
    dnnl_engine_t made;
    CHECK_DNNL(dnnl_engine_create(&made, dnnl_cpu, 0));
    return made;
  }();
  return engine;
}

inline dnnl_stream_t Stream() {
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

inline dnnl_memory_desc_t Description(const dnnl_dims_t sizes, dnnl_data_type_t type, dnnl_format_tag_t layout) {
  dnnl_memory_desc_t made;
  CHECK_DNNL(dnnl_memory_desc_create_with_tag(&made, 4, sizes, type, layout));
  return made;
}

// A kernel in HWIO as oneDNN names its axes: filters, channels, rows, columns; of a depthwise convolution groups (the
// channels), filters of each, 1, rows, columns.
struct KernelAxes {
  dnnl_dims_t sizes, strides;
  int count;

  explicit KernelAxes(const Sizes& hwio, bool is_depthwise)
      : sizes{hwio[3], hwio[2], hwio[0], hwio[1]},
        strides{1, hwio[3], hwio[1] * hwio[2] * hwio[3], hwio[2] * hwio[3]},
        count(4) {
    if (!is_depthwise) return;
    const dnnl_dims_t grouped = {hwio[2], hwio[3], 1, hwio[0], hwio[1]};
    const dnnl_dims_t steps = {hwio[3], 1, 1, hwio[1] * hwio[2] * hwio[3], hwio[2] * hwio[3]};
    count = 5;
    std::copy_n(grouped, count, sizes);
    std::copy_n(steps, count, strides);
  }

  dnnl_memory_desc_t Given(dnnl_data_type_t type) const {
    dnnl_memory_desc_t made;
    CHECK_DNNL(dnnl_memory_desc_create_with_strides(&made, count, sizes, type, strides));
    return made;
  }
  dnnl_memory_desc_t Any(dnnl_data_type_t type) const {
    dnnl_memory_desc_t made;
    CHECK_DNNL(dnnl_memory_desc_create_with_tag(&made, count, sizes, type, dnnl_format_tag_any));
    return made;
  }
};

inline dnnl_memory_desc_t Images(const Sizes& nhwc, dnnl_data_type_t type) {
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
inline dnnl_primitive_attr_t Attributes() {
  dnnl_primitive_attr_t made;
  CHECK_DNNL(dnnl_primitive_attr_create(&made));
  CHECK_DNNL(dnnl_primitive_attr_set_scratchpad_mode(made, dnnl_scratchpad_mode_user));
  return made;
}

inline dnnl_memory_desc_t Scratch(const_dnnl_primitive_desc_t chosen) {
  dnnl_memory_desc_t made;
  CHECK_DNNL(dnnl_memory_desc_clone(&made, dnnl_primitive_desc_query_md(chosen, dnnl_query_scratchpad_md, 0)));
  return made;
}

// Divides a reorder of a kernel [filters, channels, rows, columns] along one of its first two axes, where oneDNN can. A
// depthwise kernel is not divided.
inline std::vector<Reorder> Reorders(dnnl_memory_desc_t from, dnnl_memory_desc_t to, const KernelAxes& axes,
                                     int axis) {
  std::vector<Reorder> made;
  const auto& sizes = axes.sizes;
  for (int64_t first = 0; first < sizes[axis]; first += kSlice) {
    dnnl_dims_t part = {sizes[0], sizes[1], sizes[2], sizes[3]}, offsets = {0, 0, 0, 0};
    offsets[axis] = first;
    part[axis] = std::min(kSlice, sizes[axis] - first);
    made.push_back({from, to});
    if (axes.count > 4 || sizes[0] * sizes[1] * sizes[2] * sizes[3] < kSmallKernel ||
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

inline void AppendScale(dnnl_primitive_attr_t attributes, const_dnnl_memory_desc_t per_channel, bool relu) {
  dnnl_post_ops_t made;
  CHECK_DNNL(dnnl_post_ops_create(&made));
  CHECK_DNNL(dnnl_post_ops_append_binary(made, dnnl_binary_mul, per_channel));
  CHECK_DNNL(dnnl_post_ops_append_binary(made, dnnl_binary_add, per_channel));
  // x * min(max(x * the largest float, 0), 1): oneDNN's own ReLU makes 0 of a NaN. This one makes NaN of minus
  // infinity.
  if (relu) CHECK_DNNL(dnnl_post_ops_append_eltwise(made, dnnl_eltwise_hardswish, FLT_MAX, 0));
  CHECK_DNNL(dnnl_primitive_attr_set_post_ops(attributes, made));
  dnnl_post_ops_destroy(made);
}

inline Convolution* Compile(const Key& key) {
  omp_set_num_threads(1);
  auto* made = new Convolution;
  const KernelAxes axes(key.kernel, key.IsDepthwise());
  const dnnl_dims_t strides = {key.strides[0], key.strides[1]}, dilation = {0, 0};
  const dnnl_dims_t low = {key.pads[0], key.pads[2]}, high = {key.pads[1], key.pads[3]};
  made->x = Images(key.x, key.type);
  made->y = Images(key.y, key.type);
  made->kernel = axes.Given(key.kernel_type);
  dnnl_memory_desc_t any = axes.Any(key.type), any_sum = axes.Any(dnnl_f32);  // is rounded when parts are added
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
    CHECK_DNNL(dnnl_convolution_backward_data_primitive_desc_create(&chosen, Engine(), dnnl_convolution_direct, made->x,
                                                                    any, made->y, strides, dilation, low, high, forward,
                                                                    attributes));
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
    made->reorders = Reorders(from, to, axes, key.kind == kInputGradient ? 0 : 1);
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

inline void Finish(Products* made, dnnl_primitive_attr_t attributes) {
  dnnl_primitive_desc_t chosen;
  CHECK_DNNL(dnnl_matmul_primitive_desc_create(&chosen, Engine(), made->first, made->second, nullptr, made->result,
                                               attributes));
  CHECK_DNNL(dnnl_primitive_create(&made->run, chosen));
  made->scratch = Scratch(chosen);
  dnnl_primitive_desc_destroy(chosen);
  dnnl_primitive_attr_destroy(attributes);
}

inline Products* Compile(const ProductKey& key) {
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

inline Products* Compile(const TransposedKey& key) {
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

inline std::vector<Reorder>* Compile(const LayoutKey& key);

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

inline std::vector<Reorder>* Compile(const LayoutKey& key) {
  const KernelAxes axes(key.to.kernel, key.to.IsDepthwise());
  return new std::vector<Reorder>(Reorders(Compiled(key.from).packed, Compiled(key.to).packed, axes, 1));
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

inline void Execute(const_dnnl_primitive_t run, const_dnnl_memory_desc_t scratch,
                    const std::vector<Operand>& operands) {
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

inline void Run(const Key& key, const Convolution& convolution, void* x, void* kernel, void* y,
                const After& after = {}) {
  const bool of_input = key.kind == kInputGradient, of_kernel = key.kind == kKernelGradient;
  std::vector<Operand> operands = {{of_input ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, convolution.x, x},
                                   {of_kernel ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, convolution.packed, kernel},
                                   {key.kind == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, convolution.y, y}};
  for (int which = 0; key.scales && which < 2; which++)  // factors, shifts
    operands.push_back({DNNL_ARG_ATTR_MULTIPLE_POST_OP(which) | DNNL_ARG_SRC_1, convolution.per_channel,
                        after.coefficients + which * key.kernel[3]});
  Execute(convolution.run, convolution.scratch, operands);
}

inline void Run(const Products& products, void* first, void* second, void* result) {
  Execute(products.run, products.scratch,
          {{DNNL_ARG_SRC, products.first, first},
           {DNNL_ARG_WEIGHTS, products.second, second},
           {DNNL_ARG_DST, products.result, result}});
}

}  // namespace onednn

#endif  // INCEPTION_JAX_PRIMITIVES_H_
