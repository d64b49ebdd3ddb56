// The ops as torch sees them, through its stable ABI: one build serves every Python and needs no C++ headers of ATen.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "isa.h"

namespace {

using torch::stable::Tensor;
using namespace fastvq::cpu;

int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

bool is_double(const Tensor& tensor) { return dtype_of(tensor) == aoti_torch_dtype_float64(); }

Rows rows_of(const Tensor& x) {
  const int32_t dtype = dtype_of(x);
  const DType kind = dtype == aoti_torch_dtype_float32()   ? DType::float32
                     : dtype == aoti_torch_dtype_float64() ? DType::float64
                     : dtype == aoti_torch_dtype_float16() ? DType::float16
                                                           : DType::bfloat16;
  return {x.data_ptr(), kind,        x.size(0),   x.size(1),   x.size(2),
          x.size(3),    x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

template <class T>
Grid<T> grid_of(const Tensor& tensor) {
  return {static_cast<T*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.dim() > 3 ? tensor.stride(3) : 0};
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
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(N, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

int32_t result_dtype(bool doubles) { return doubles ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(); }

std::tuple<Tensor, Tensor> nearest_op(const Tensor& x, const Tensor& codebook, std::optional<Tensor> mask,
                                      int64_t metric, bool exact) {
  Nearest call{};
  call.x = rows_of(x);
  if (mask) call.mask = grid_of<const bool>(*mask);
  call.codebook = {codebook.data_ptr(), codebook.size(0),   codebook.size(1),  codebook.size(2),
                   codebook.stride(0),  codebook.stride(1), codebook.stride(2)};
  call.metric = static_cast<Metric>(metric);
  call.exact = exact;
  const int64_t sizes[] = {call.x.groups, call.x.rows1, call.x.rows2};
  constexpr int rows_outermost[] = {1, 2, 0};
  Tensor indices = empty(sizes, rows_outermost, aoti_torch_dtype_int64());
  Tensor distances = empty(sizes, rows_outermost, result_dtype(call.is_double()));
  call.indices = static_cast<int64_t*>(indices.data_ptr());
  call.distances = distances.data_ptr();
  nearest(call);
  return {indices, distances};
}

std::tuple<Tensor, Tensor, int64_t> segment_sum_op(const Tensor& x, const Tensor& indices, int64_t num_codes) {
  SegmentSum call{rows_of(x), grid_of<const int64_t>(indices), num_codes, nullptr, nullptr};
  const int32_t dtype = result_dtype(is_double(x));
  Tensor sums = empty({call.x.groups, num_codes, call.x.dim}, {0, 1, 2}, dtype);
  Tensor counts = empty({call.x.groups, num_codes}, {0, 1}, dtype);
  call.sums = sums.data_ptr();
  call.counts = counts.data_ptr();
  const int64_t outside = segment_sum(call);
  return {sums, counts, outside};
}

std::tuple<Tensor, int64_t> lookup_op(const Tensor& indices, const Tensor& codebooks) {
  Lookup call{};
  call.indices = grid_of<const int64_t>(indices);
  call.groups = indices.size(0);
  call.rows1 = indices.size(1);
  call.rows2 = indices.size(2);
  call.stages = indices.size(3);
  call.codebooks = codebooks.data_ptr();
  call.is_double = is_double(codebooks);
  call.codes = codebooks.size(2);
  call.dim = codebooks.size(3);
  call.group_stride = codebooks.stride(0);
  call.stage_stride = codebooks.stride(1);
  call.code_stride = codebooks.stride(2);
  call.dim_stride = codebooks.stride(3);
  Tensor out = empty({call.groups, call.rows1, call.rows2, call.dim}, {1, 2, 0, 3}, result_dtype(call.is_double));
  call.out = out.data_ptr();
  const int64_t outside = lookup(call);
  return {out, outside};
}

CodeStack stack_of(const Tensor& codebooks) {
  return {codebooks.data_ptr(),  is_double(codebooks), codebooks.size(0),   codebooks.size(1),   codebooks.size(2),
          codebooks.size(3),     codebooks.stride(0),  codebooks.stride(1), codebooks.stride(2), codebooks.stride(3)};
}

std::tuple<Tensor, Tensor, Tensor> residual_nearest_op(const Tensor& x, const Tensor& codebooks,
                                                       std::optional<std::vector<int64_t>> sizes,
                                                       std::optional<Tensor> stages, std::optional<Tensor> mask,
                                                       bool exact) {
  ResidualNearest call{};
  call.x = rows_of(x);
  if (mask) call.mask = grid_of<const bool>(*mask);
  if (stages)
    call.stages = {static_cast<const int64_t*>(stages->data_ptr()), 0, stages->stride(0), stages->stride(1), 0};
  call.codebooks = stack_of(codebooks);
  call.sizes = sizes ? sizes->data() : nullptr;
  call.exact = exact;
  const int64_t of_stages[] = {call.x.groups, call.x.rows1, call.x.rows2, call.codebooks.stages};
  const int64_t of_rows[] = {call.x.groups, call.x.rows1, call.x.rows2, call.x.dim};
  constexpr int rows_outermost[] = {1, 2, 0, 3};
  Tensor indices = empty(of_stages, rows_outermost, aoti_torch_dtype_int64());
  Tensor errors = empty(of_stages, rows_outermost, result_dtype(call.codebooks.is_double));
  Tensor quantized = empty(of_rows, rows_outermost, dtype_of(x));
  call.indices = static_cast<int64_t*>(indices.data_ptr());
  call.errors = errors.data_ptr();
  call.quantized = quantized.data_ptr();
  residual_nearest(call);
  return {indices, quantized, errors};
}

std::tuple<Tensor, Tensor, int64_t> residual_segment_sum_op(const Tensor& x, const Tensor& indices,
                                                            const Tensor& codebooks) {
  ResidualSum call{};
  call.x = rows_of(x);
  call.indices = grid_of<const int64_t>(indices);
  call.codebooks = stack_of(codebooks);
  const CodeStack& stack = call.codebooks;
  const int32_t dtype = result_dtype(stack.is_double);
  Tensor sums = empty({stack.groups, stack.stages, stack.codes, stack.dim}, {0, 1, 2, 3}, dtype);
  Tensor counts = empty({stack.groups, stack.stages, stack.codes}, {0, 1, 2}, dtype);
  call.sums = sums.data_ptr();
  call.counts = counts.data_ptr();
  const int64_t outside = residual_segment_sum(call);
  return {sums, counts, outside};
}

Tensor ema_update_op(const Tensor& codebook, const Tensor& embed_sum, const Tensor& cluster_size, const Tensor& sums,
                     const Tensor& counts, double decay, double eps, bool laplace, bool normalize, double dead_below,
                     bool relative) {
  Ema call{};
  call.codebook = codebook.data_ptr();
  call.embed_sum = embed_sum.data_ptr();
  call.cluster_size = cluster_size.data_ptr();
  call.sums = sums.data_ptr();
  call.counts = counts.data_ptr();
  call.is_double = is_double(codebook);
  call.groups = codebook.size(0);
  call.codes = codebook.size(1);
  call.dim = codebook.size(2);
  call.decay = decay;
  call.eps = eps;
  call.dead_below = dead_below;
  call.laplace = laplace;
  call.normalize = normalize;
  call.relative = relative;
  Tensor dead = empty({call.groups, call.codes}, {0, 1}, aoti_torch_dtype_bool());
  call.dead = static_cast<bool*>(dead.data_ptr());
  ema_update(call);
  return dead;
}

bool select_isa(std::string name) { return select_kernels(name.c_str()); }
std::string isa() { return kernels().name; }

}  // namespace

STABLE_TORCH_LIBRARY(fastvq_cpu, library) {
  library.def("nearest(Tensor x, Tensor codebook, Tensor? mask, int metric, bool exact) -> (Tensor, Tensor)");
  library.def("segment_sum(Tensor x, Tensor indices, int num_codes) -> (Tensor, Tensor, int)");
  library.def(
      "residual_nearest(Tensor x, Tensor codebooks, int[]? sizes, Tensor? stages, Tensor? mask, bool exact) "
      "-> (Tensor, Tensor, Tensor)");
  library.def("residual_segment_sum(Tensor x, Tensor indices, Tensor codebooks) -> (Tensor, Tensor, int)");
  library.def("lookup(Tensor indices, Tensor codebooks) -> (Tensor, int)");
  library.def(
      "ema_update_(Tensor(a!) codebook, Tensor(b!) embed_sum, Tensor(c!) cluster_size, Tensor sums, Tensor counts, "
      "float decay, float eps, bool laplace, bool normalize, float dead_below, bool relative) -> Tensor");
  library.def("select_isa(str name) -> bool");
  library.def("isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastvq_cpu, CPU, library) {
  library.impl("nearest", TORCH_BOX(&nearest_op));
  library.impl("segment_sum", TORCH_BOX(&segment_sum_op));
  library.impl("residual_nearest", TORCH_BOX(&residual_nearest_op));
  library.impl("residual_segment_sum", TORCH_BOX(&residual_segment_sum_op));
  library.impl("lookup", TORCH_BOX(&lookup_op));
  library.impl("ema_update_", TORCH_BOX(&ema_update_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastvq_cpu, CompositeExplicitAutograd, library) {
  library.impl("select_isa", TORCH_BOX(&select_isa));
  library.impl("isa", TORCH_BOX(&isa));
}
