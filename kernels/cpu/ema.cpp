#include "ema.h"

#include <cfloat>
#include <type_traits>

#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

typedef float FloatBunch __attribute__((vector_size(64)));
typedef double DoubleBunch __attribute__((vector_size(128)));
constexpr int64_t BUNCH = 16;  // codes side by side, whatever the vectors' width: sums always have one order
template <class T>
using Bunch = typename std::conditional<sizeof(T) == 8, DoubleBunch, FloatBunch>::type;

template <class T>
void count(const Ema& call, int64_t group) {
  T* size = static_cast<T*>(call.cluster_size) + group * call.codes;
  const T* counts = static_cast<const T*>(call.counts) + group * call.codes;
  const T decay = static_cast<T>(call.decay), gain = static_cast<T>(1 - call.decay);
  DoubleBunch sums{};
  int64_t k = 0;
  for (; k + BUNCH <= call.codes; k += BUNCH) {
    const Bunch<T> moved = decay * load<Bunch<T>>(size + k) + gain * load<Bunch<T>>(counts + k);
    store(size + k, moved);
    sums += __builtin_convertvector(moved, DoubleBunch);
  }
  double total = 0;
  for (int i = 0; i < BUNCH; ++i) total += sums[i];
  for (; k < call.codes; ++k) {
    size[k] = decay * size[k] + gain * counts[k];
    total += size[k];
  }
  call.totals[group] = total;
}

// The average and the code of LENGTH bytes of columns, or the average alone where the code has no size.
template <class T, int LENGTH>
FASTVQ_INLINE void move(T* sum, T* code, const T* add, T decay, T gain, T size) {
  typedef T Vector __attribute__((vector_size(LENGTH)));
  const Vector moved = decay * load<Vector>(sum) + gain * load<Vector>(add);
  store(sum, moved);
  if (size > 0) store(code, moved / size);
}

template <class T>
FASTVQ_INLINE void move_all(T* sum, T* code, const T* add, int64_t dim, T decay, T gain, T size) {
  constexpr int64_t whole = 4 * LANES / sizeof(T), half = 32 / sizeof(T), quarter = 16 / sizeof(T);
  int64_t d = 0;
  for (; d + whole <= dim; d += whole) move<T, 4 * LANES>(sum + d, code + d, add + d, decay, gain, size);
  for (; d + half <= dim; d += half) move<T, 32>(sum + d, code + d, add + d, decay, gain, size);
  for (; d + quarter <= dim; d += quarter) move<T, 16>(sum + d, code + d, add + d, decay, gain, size);
  for (; d < dim; ++d) move<T, sizeof(T)>(sum + d, code + d, add + d, decay, gain, size);
}

// What the averages of `count` codes are divided by.
template <class T>
FASTVQ_INLINE void smooth(const Ema& call, const T* cluster_size, int64_t count, double total, T* sizes) {
  if (!call.laplace) {
    std::memcpy(sizes, cluster_size, count * sizeof(T));
    return;
  }
  const double whole = total + static_cast<double>(call.codes) * call.eps;
  int64_t k = 0;
  for (; k + BUNCH <= count; k += BUNCH) {
    const DoubleBunch n = __builtin_convertvector(load<Bunch<T>>(cluster_size + k), DoubleBunch);
    store(sizes + k, __builtin_convertvector((n + call.eps) / whole * total, Bunch<T>));
  }
  for (; k < count; ++k) sizes[k] = static_cast<T>((cluster_size[k] + call.eps) / whole * total);
}

template <class T>
void update(const Ema& call, int64_t group, int64_t first, int64_t last) {
  const T decay = static_cast<T>(call.decay), gain = static_cast<T>(1 - call.decay);
  const double total = call.totals[group], codes = static_cast<double>(call.codes);
  const T mean = static_cast<T>(total) / static_cast<T>(codes);
  const T alive_from = static_cast<T>(call.dead_below) * (call.relative ? mean : T{1});
  constexpr T TINY = sizeof(T) == 8 ? static_cast<T>(DBL_MIN) : static_cast<T>(FLT_MIN);
  T sizes[EMA_PART];
  smooth(call, static_cast<const T*>(call.cluster_size) + group * call.codes + first, last - first, total, sizes);
  for (int64_t k = first; k < last; ++k) {
    const int64_t at = group * call.codes + k;
    T* sum = static_cast<T*>(call.embed_sum) + at * call.dim;
    T* code = static_cast<T*>(call.codebook) + at * call.dim;
    const T* add = static_cast<const T*>(call.sums) + at * call.dim;
    move_all(sum, code, add, call.dim, decay, gain, sizes[k - first]);
    if (call.normalize) {
      double square = 0;
      for (int64_t d = 0; d < call.dim; ++d) square += double(code[d]) * double(code[d]);
      T norm = static_cast<T>(__builtin_sqrt(square));
      if (norm < TINY) norm = TINY;
      for (int64_t d = 0; d < call.dim; ++d) code[d] /= norm;
    }
    call.dead[at] = static_cast<const T*>(call.cluster_size)[at] < alive_from;
  }
}

void count_group(const Ema& call, int64_t group) {
  if (call.is_double) count<double>(call, group);
  else count<float>(call, group);
}

void update_codes(const Ema& call, int64_t group, int64_t first, int64_t last) {
  if (call.is_double) update<double>(call, group, first, last);
  else update<float>(call, group, first, last);
}

}  // namespace

extern const EmaKernels ema_kernels;
const EmaKernels ema_kernels{count_group, update_codes};

}  // namespace fastvq::cpu::FASTVQ_ISA
