// The ops as torch sees them, through its stable C interface: one build serves every Python.
//
// They are registered twice: as fastvq_cpu::*, which fastvq.kernels.cpu calls, and for CPU tensors as the public
// fastvq::* (fastvq/ops.py), which then run without Python where `impl`, their last argument, asks for these kernels.
// Other implementations are Python functions; the ops "<name>_python" run those and return one tensor more than the
// op, the text of the exception that ended it, since exceptions do not pass the C interface.
#include "isa.h"
#include "kept.h"
#include "stable.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

using namespace fastvq::cpu;

bool is_double(const Tensor& tensor) { return tensor.dtype() == aoti_torch_dtype_float64(); }

Rows rows_of(const Tensor& x) {
  const int32_t dtype = x.dtype();
  const DType kind = dtype == aoti_torch_dtype_float32()   ? DType::float32
                     : dtype == aoti_torch_dtype_float64() ? DType::float64
                     : dtype == aoti_torch_dtype_float16() ? DType::float16
                                                           : DType::bfloat16;
  return {x.data(),  kind,        x.size(0),   x.size(1),   x.size(2),
          x.size(3), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

template <class T, int AXES>
Grid<T> grid_of(const Tensor& tensor) {
  return {static_cast<T*>(tensor.data()), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          AXES > 3 ? tensor.stride(AXES - 1) : 0};
}

Codebook codebook_of(const Tensor& codebook) {
  return {codebook.data(),    codebook.size(0),   codebook.size(1),  codebook.size(2),
          codebook.stride(0), codebook.stride(1), codebook.stride(2)};
}

CodeStack stack_of(const Tensor& codebooks) {
  return {codebooks.data(),  is_double(codebooks), codebooks.size(0),   codebooks.size(1),   codebooks.size(2),
          codebooks.size(3), codebooks.stride(0),  codebooks.stride(1), codebooks.stride(2), codebooks.stride(3)};
}

// Asks the system for large pages (2 MiB on x86) under fresh memory: a tensor of 16 MiB then takes a dozen page faults
// in place of four thousand, which cost more than writing it. Where the system knows none, nothing changes.
void ask_for_large_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t large = 2 << 20;
  if (bytes < static_cast<int64_t>(2 * large)) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + large - 1) / large * large;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / large * large;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// An uninitialised tensor whose storage has its axes in the given order.
template <int N>
Tensor empty(const int64_t (&sizes)[N], const int (&storage_order)[N], int32_t dtype) {
  int64_t strides[N], step = 1;
  for (int i = N - 1; i >= 0; --i) {
    strides[storage_order[i]] = step;
    step *= sizes[storage_order[i]] > 0 ? sizes[storage_order[i]] : 1;
  }
  AtenTensorHandle handle;
  require(aoti_torch_empty_strided(N, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  ask_for_large_pages(tensor.data(), step * aoti_torch_dtype_element_size(dtype));
  return tensor;
}

int32_t result_dtype(bool doubles) { return doubles ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(); }

Metric metric_of(const Text& text) {
  if (text == "l2") return Metric::l2;
  if (text == "cosine") return Metric::cosine;
  if (text == "dot") return Metric::dot;
  throw std::invalid_argument("metric must be 'l2', 'cosine' or 'dot'");
}

// The same words as kernels/_layout.py.
void check_inside(int64_t outside, int64_t codes) {
  if (outside == -1) return;
  throw std::out_of_range("indices must lie in [-1, " + std::to_string(codes) + "), got " + std::to_string(outside) +
                          ": these indices belong to another codebook");
}

Nearest search_of(const Tensor& x, const Tensor& codebook, const std::optional<Tensor>& mask, const Text& metric,
                  const Text& precision) {
  Nearest call{};
  call.x = rows_of(x);
  if (mask) call.mask = grid_of<const bool, 3>(*mask);
  call.codebook = codebook_of(codebook);
  call.metric = metric_of(metric);
  call.exact = precision == "exact";
  return call;
}

void run_search(Nearest& call, Tensor& indices, Tensor& distances, StableIValue* stack) {
  call.indices = indices.data<int64_t>();
  call.distances = distances.data();
  nearest(call);
  stack[0] = indices.release();
  stack[1] = distances.release();
}

void nearest_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), codebook = arguments.tensor();
  const std::optional<Tensor> mask = arguments.optional_tensor();
  const Text metric = arguments.text(), precision = arguments.text();
  Nearest call = search_of(x, codebook, mask, metric, precision);
  const int64_t sizes[] = {call.x.groups, call.x.rows1, call.x.rows2};
  constexpr int rows_outermost[] = {1, 2, 0};
  Tensor indices = empty(sizes, rows_outermost, aoti_torch_dtype_int64());
  Tensor distances = empty(sizes, rows_outermost, result_dtype(call.is_double()));
  run_search(call, indices, distances, stack);
}

void nearest_topk_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), codebook = arguments.tensor();
  const std::optional<Tensor> mask = arguments.optional_tensor();
  const int64_t topk = arguments.integer();
  const Text metric = arguments.text(), precision = arguments.text();
  Nearest call = search_of(x, codebook, mask, metric, precision);
  call.topk = topk;
  const int64_t sizes[] = {call.x.groups, call.x.rows1, call.x.rows2, topk};
  constexpr int rows_outermost[] = {1, 2, 0, 3};
  Tensor indices = empty(sizes, rows_outermost, aoti_torch_dtype_int64());
  Tensor distances = empty(sizes, rows_outermost, aoti_torch_dtype_float64());
  run_search(call, indices, distances, stack);
}

void residual_nearest_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), codebooks = arguments.tensor();
  const std::optional<std::vector<int64_t>> sizes = arguments.optional_integers();
  const std::optional<Tensor> stages = arguments.optional_tensor(), mask = arguments.optional_tensor();
  const Text precision = arguments.text();
  ResidualNearest call{};
  call.x = rows_of(x);
  if (mask) call.mask = grid_of<const bool, 3>(*mask);
  if (stages) call.stages = {stages->data<const int64_t>(), 0, stages->stride(0), stages->stride(1), 0};
  call.codebooks = stack_of(codebooks);
  call.sizes = sizes ? sizes->data() : nullptr;
  call.exact = precision == "exact";
  const int64_t of_stages[] = {call.x.groups, call.x.rows1, call.x.rows2, call.codebooks.stages};
  const int64_t of_rows[] = {call.x.groups, call.x.rows1, call.x.rows2, call.x.dim};
  constexpr int rows_outermost[] = {1, 2, 0, 3};
  Tensor indices = empty(of_stages, rows_outermost, aoti_torch_dtype_int64());
  Tensor quantized = empty(of_rows, rows_outermost, x.dtype());
  Tensor errors = empty(of_stages, rows_outermost, result_dtype(call.codebooks.is_double));
  call.indices = indices.data<int64_t>();
  call.quantized = quantized.data();
  call.errors = errors.data();
  residual_nearest(call);
  stack[0] = indices.release();
  stack[1] = quantized.release();
  stack[2] = errors.release();
}

void segment_sum_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), indices = arguments.tensor();
  SegmentSum call{rows_of(x), grid_of<const int64_t, 3>(indices), arguments.integer(), nullptr, nullptr};
  const int32_t dtype = result_dtype(is_double(x));
  Tensor sums = empty({call.x.groups, call.codes, call.x.dim}, {0, 1, 2}, dtype);
  Tensor counts = empty({call.x.groups, call.codes}, {0, 1}, dtype);
  call.sums = sums.data();
  call.counts = counts.data();
  check_inside(segment_sum(call), call.codes);
  stack[0] = sums.release();
  stack[1] = counts.release();
}

void residual_segment_sum_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), indices = arguments.tensor(), codebooks = arguments.tensor();
  ResidualSum call{};
  call.x = rows_of(x);
  call.indices = grid_of<const int64_t, 4>(indices);
  call.codebooks = stack_of(codebooks);
  const CodeStack& codes = call.codebooks;
  const int32_t dtype = result_dtype(codes.is_double);
  Tensor sums = empty({codes.groups, codes.stages, codes.codes, codes.dim}, {0, 1, 2, 3}, dtype);
  Tensor counts = empty({codes.groups, codes.stages, codes.codes}, {0, 1, 2}, dtype);
  call.sums = sums.data();
  call.counts = counts.data();
  check_inside(residual_segment_sum(call), codes.codes);
  stack[0] = sums.release();
  stack[1] = counts.release();
}

void lookup_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor indices = arguments.tensor(), codebooks = arguments.tensor();
  const CodeStack codes = stack_of(codebooks);
  Lookup call{};
  call.indices = grid_of<const int64_t, 4>(indices);
  call.groups = indices.size(0);
  call.rows1 = indices.size(1);
  call.rows2 = indices.size(2);
  call.stages = indices.size(3);
  call.codebooks = codes.data;
  call.is_double = codes.is_double;
  call.codes = codes.codes;
  call.dim = codes.dim;
  call.group_stride = codes.group_stride;
  call.stage_stride = codes.stage_stride;
  call.code_stride = codes.code_stride;
  call.dim_stride = codes.dim_stride;
  Tensor out = empty({call.groups, call.rows1, call.rows2, call.dim}, {1, 2, 0, 3}, result_dtype(call.is_double));
  call.out = out.data();
  check_inside(lookup(call), call.codes);
  stack[0] = out.release();
}

void commitment_grad_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), indices = arguments.tensor(), codebook = arguments.tensor();
  const std::optional<Tensor> valid = arguments.optional_tensor();
  const Tensor grad = arguments.tensor(), scale = arguments.tensor();
  CommitmentGrad call{};
  call.x = rows_of(x);
  call.grad = rows_of(grad);
  call.indices = grid_of<const int64_t, 3>(indices);
  if (valid) call.valid = grid_of<const bool, 3>(*valid);
  call.codebook = codebook_of(codebook);
  call.scale = is_double(scale) ? *scale.data<const double>() : *scale.data<const float>();
  Tensor out = empty({call.x.groups, call.x.rows1, call.x.rows2, call.x.dim}, {1, 2, 0, 3}, x.dtype());
  call.out = out.data();
  check_inside(commitment_grad(call), call.codebook.codes);
  stack[0] = out.release();
}

void ema_update_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor codebook = arguments.tensor(), embed_sum = arguments.tensor(), cluster_size = arguments.tensor();
  const Tensor sums = arguments.tensor(), counts = arguments.tensor();
  Ema call{};
  call.codebook = codebook.data();
  call.embed_sum = embed_sum.data();
  call.cluster_size = cluster_size.data();
  call.sums = sums.data();
  call.counts = counts.data();
  call.is_double = is_double(codebook);
  call.groups = codebook.size(0);
  call.codes = codebook.size(1);
  call.dim = codebook.size(2);
  call.decay = arguments.real();
  call.eps = arguments.real();
  call.laplace = arguments.text() == "laplace";
  call.normalize = arguments.flag();
  call.dead_below = arguments.real();
  call.relative = arguments.flag();
  Tensor dead = empty({call.groups, call.codes}, {0, 1}, aoti_torch_dtype_bool());
  call.dead = dead.data<bool>();
  ema_update(call);
  stack[0] = dead.release();
}

void select_isa_op(StableIValue* stack, uint64_t, uint64_t) {
  const Text name = Arguments(stack).text();
  const char* text;
  require(torch_string_c_str(name.get(), &text));
  stack[0] = select_kernels(text);
}

void keep_op(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor codebooks = Arguments(stack).tensor();
  const CodeStack codes = stack_of(codebooks);
  if (codes.dim_stride != 1 || codes.code_stride != codes.dim)
    throw std::invalid_argument("codebooks must be contiguous to be kept: give codebooks.contiguous()");
  stack[0] = static_cast<StableIValue>(keep(codes));
}

void forget_op(StableIValue* stack, uint64_t, uint64_t) { forget(Arguments(stack).integer()); }

void isa_op(StableIValue* stack, uint64_t, uint64_t) {
  StringHandle name;
  require(torch_new_string_handle(kernels().name, std::strlen(kernels().name), &name));
  stack[0] = reinterpret_cast<uintptr_t>(name);
}

// Throws what Python gets as the exception that `text` names.
[[noreturn]] void rethrow(const std::string& text) {
  const auto colon = text.find(": ");
  const std::string kind = text.substr(0, colon), message = text.substr(colon + 2);
  if (kind == "ValueError") throw std::invalid_argument(message);
  if (kind == "IndexError") throw std::out_of_range(message);
  throw std::runtime_error(kind == "RuntimeError" ? message : text);
}

// Hands the arguments of a kernel to the Python op of that name, and the results back.
void call_python(const char* op, StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  std::vector<StableIValue> values(stack, stack + inputs);
  if (values.size() < outputs + 1) values.resize(outputs + 1);
  require(torch_call_dispatcher(op, "", values.data(), TORCH_ABI_VERSION));
  const Tensor error(values[outputs]);
  if (error.size(0) > 0) {
    for (uint64_t i = 0; i < outputs; ++i) const Tensor dropped(values[i]);
    rethrow(std::string(error.data<const char>(), static_cast<size_t>(error.size(0))));
  }
  std::memcpy(stack, values.data(), outputs * sizeof *stack);
}

using Kernel = void (*)(StableIValue*, uint64_t, uint64_t);

// A public op: the same arguments as the kernel's, then `impl`.
void run_public(Kernel kernel, const char* python, StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  Text impl(stack[inputs - 1]);
  if (has_kernels() && (impl == "auto" || impl == "cpu")) return kernel(stack, inputs - 1, outputs);
  impl.release();
  call_python(python, stack, inputs, outputs);
}

// Registrations last as long as the process.
class Library {
 public:
  static Library define(const char* name) {
    Library library;
    require(aoti_torch_library_init_def(name, __FILE__, __LINE__, &library.handle_));
    return library;
  }
  static Library implement(const char* name, const char* key) {
    Library library;
    require(aoti_torch_library_init_impl(name, key, __FILE__, __LINE__, &library.handle_));
    return library;
  }
  void def(const char* schema) { require(aoti_torch_library_def(handle_, schema)); }
  void impl(const char* op, Kernel kernel) { require(torch_library_impl(handle_, op, kernel, TORCH_ABI_VERSION)); }

 private:
  TorchLibraryHandle handle_;
};

[[maybe_unused]] const bool registered = [] {
  Library library = Library::define("fastvq_cpu");
  library.def("nearest(Tensor x, Tensor codebook, Tensor? mask, str metric, str precision) -> (Tensor, Tensor)");
  library.def(
      "nearest_topk(Tensor x, Tensor codebook, Tensor? mask, int topk, str metric, str precision) -> (Tensor, Tensor)");
  library.def(
      "residual_nearest(Tensor x, Tensor codebooks, int[]? sizes, Tensor? stages, Tensor? mask, str precision) "
      "-> (Tensor, Tensor, Tensor)");
  library.def("segment_sum(Tensor x, Tensor indices, int num_codes) -> (Tensor, Tensor)");
  library.def("residual_segment_sum(Tensor x, Tensor indices, Tensor codebooks) -> (Tensor, Tensor)");
  library.def("lookup(Tensor indices, Tensor codebooks) -> Tensor");
  library.def(
      "ema_update_(Tensor(a!) codebook, Tensor(b!) embed_sum, Tensor(c!) cluster_size, Tensor sums, Tensor counts, "
      "float decay, float eps, str smoothing, bool normalize, float dead_below, bool relative) -> Tensor");
  library.def(
      "commitment_grad(Tensor x, Tensor indices, Tensor codebook, Tensor? valid, Tensor grad, Tensor scale) -> Tensor");
  library.def("keep(Tensor codebooks) -> int");
  library.def("forget(int number) -> ()");
  library.def("select_isa(str name) -> bool");
  library.def("isa() -> str");

  Library other = Library::implement("fastvq_cpu", "CompositeExplicitAutograd");
  other.impl("select_isa", select_isa_op);
  other.impl("isa", isa_op);
  other.impl("forget", forget_op);

  Library kernel = Library::implement("fastvq_cpu", "CPU"), open = Library::implement("fastvq", "CPU");
  kernel.impl("keep", keep_op);
  kernel.impl("commitment_grad", commitment_grad_op);
#define FASTVQ_OP(name, run)                                                            \
  kernel.impl(name, run);                                                               \
  open.impl(name, [](StableIValue* stack, uint64_t inputs, uint64_t outputs) {          \
    run_public(run, "fastvq::" name "_python", stack, inputs, outputs);                 \
  });
  FASTVQ_OP("nearest", nearest_op)
  FASTVQ_OP("nearest_topk", nearest_topk_op)
  FASTVQ_OP("residual_nearest", residual_nearest_op)
  FASTVQ_OP("segment_sum", segment_sum_op)
  FASTVQ_OP("residual_segment_sum", residual_segment_sum_op)
  FASTVQ_OP("lookup", lookup_op)
  FASTVQ_OP("ema_update_", ema_update_op)
#undef FASTVQ_OP
  return true;
}();

}  // namespace
