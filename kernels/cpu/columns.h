// The pass in bytes for narrow rows: lanes = rows. What it leaves is a few panels a row, which float32 decides.
//
// As in bytes.h a row is y^ = s p + what rounding took (norm R), a code e^_k = t q_k + what rounding took. Here a set
// of rows has one step s and a panel of codes one step t, so that a bias is a whole number of s t,
//   b_k = round(bias_k / (s t)),   |bias_k - s t b_k| <= 2 s t,
// and Z_k = b_k + p.q_k takes no arithmetic but that of int32. (The quotient has four roundings: it is off by 2^-21 of
// its value, which s keeps below 2^21: GroupCodes::least_step.) With A and B the largest norms, in a panel, of e^_k and
// of what rounding took:
//   |s t Z_k - S_k| <= W = R A + (Y + R) B + 2 s t   besides the roundings of y^ and e^ in nearest.h.
// A row keeps of a panel m = s t max Z_k: all its scores lie below m + W. The panel with the largest m is scored in
// float32, for all rows listed together that have it in common, then every other panel whose m + W reaches what was
// best there, less the slack: those left out hold no code that the oracle prefers to that one. Among the panels scored
// the argument of nearest.h decides. On normal data of 8 values 512 codes take 1.54 panels a row, where 2.12 reach the
// largest m - W.
// R may be any size: rows far larger than the others of their set are cut off at 127 steps. m has three roundings and
// its sum with W a fourth: 4.1 u (|m| + W), where |m| <= Y E + E^2/2 + W. What is of Y E and E^2/2 stays below the eps
// of bytes.h, and so does the rounding of the float32 score that m + W is compared with, g(D+5) (Y E + E^2/2): the
// slack of bytes.h has room for both. What is of W is covered, as the roundings of W itself, by the inflation of R,
// Y + R, A and B (2^-9 or 2^-10) and by one s t more.
#pragma once

#include <new>

#include "bytes.h"
#include "rows.h"
#include "stand.h"

#if defined(__AVX512VNNI__)

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int64_t MOST_VISITS = 1 << 15;  // that are listed together
constexpr int64_t AHEAD = 16;  // panels whose biases are made together: the products that follow read them at once
constexpr float ABSENT_STEPS = 0x1p30f;           // minus the bias of an absent code

// Of a panel: its step t, 1 / t, A and B, then its codes' bytes plus 128, a row of entries for each four of the PADDED
// values.
constexpr int64_t COLUMN_HEADER = LANES;
FASTVQ_INLINE int64_t column_size(int64_t padded) { return COLUMN_HEADER + padded / 4 * PANEL; }

// Entries of four bytes each from four vectors of whole numbers in [-128, 127].
FASTVQ_INLINE __m512i join_bytes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i low = _mm512_set1_epi32(255);
  const __m512i ab = _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32(_mm512_and_si512(b, low), 8));
  const __m512i cd = _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(c, low), 16), _mm512_slli_epi32(d, 24));
  return _mm512_or_si512(ab, cd);
}

// LANES columns of `padded` values, `stride` apart, in steps, 127 at most: writes their entries and adds up what that
// took.
template <int PADDED>
FASTVQ_INLINE void column_bytes(const float* values, int64_t stride, float unit, __m512i (&entries)[PADDED / 4],
                                Floats& lost) {
  const Floats step = splat(unit), inverse = splat(1 / unit);
#pragma GCC unroll 4
  for (int i = 0; i < PADDED / 4; ++i) {
    __m512i p[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Floats y = load<Floats>(values + (4 * i + j) * stride);
      p[j] = _mm512_cvtps_epi32(minimum(maximum(y * inverse, splat(-127.0f)), splat(127.0f)));
      const Floats left = multiply_add(-_mm512_cvtepi32_ps(p[j]), step, y);
      lost += left * left;
    }
    entries[i] = join_bytes(p[0], p[1], p[2], p[3]);
  }
}

// Packs the columns of one panel, whose float32 codes are packed already.
template <int PADDED>
static void pack_columns(const float* panel, int64_t dim, float* to) {
  Floats largest_entry{}, square[VECTORS] = {}, lost[VECTORS] = {};
  for (int v = 0; v < VECTORS; ++v)
    for (int d = 0; d < PADDED; ++d) {
      const Floats e = load<Floats>(panel + (d + 1) * PANEL + v * LANES);
      largest_entry = maximum(magnitude(e), largest_entry);
      square[v] += e * e;
    }
  const float step = step_of(largest(largest_entry));
  double largest_square = 0, largest_lost = 0;
  for (int v = 0; v < VECTORS; ++v) {
    __m512i entries[PADDED / 4];
    column_bytes<PADDED>(panel + PANEL + v * LANES, PANEL, step, entries, lost[v]);
    for (int i = 0; i < PADDED / 4; ++i)
      _mm512_storeu_si512(to + COLUMN_HEADER + i * PANEL + v * LANES,
                          _mm512_xor_si512(entries[i], _mm512_set1_epi8(-128)));
    const double own_square = largest(square[v]), own_lost = largest(lost[v]);
    largest_square = own_square > largest_square ? own_square : largest_square;
    largest_lost = own_lost > largest_lost ? own_lost : largest_lost;
  }
  const double unseen = double(dim) * 0x1p-126;
  const auto norm = static_cast<float>((1 + 0x1p-10) * __builtin_sqrt(largest_square + unseen));
  const auto rounding = static_cast<float>((1 + 0x1p-10) * __builtin_sqrt(largest_lost + unseen));
  store(to, Floats{step, 1 / step, norm, rounding});
}

constexpr int BYTE_VECTORS = 4;  // of rows that pass the codes together: so many that loading these counts little
static_assert(BYTE_VECTORS * LANES == LARGEST_SET);

// A set of rows in bytes, a lane each; all count in one step s, so that a code's bias is a whole number of them. They
// stand STAND vectors side by side.
template <int PADDED>
struct ByteSet {
  static constexpr int VECS = BYTE_VECTORS, STAND = SET_VECTORS<PADDED>;
  __m512i entries[PADDED / 4][VECS], begins[VECS];
  Floats lost[VECS], whole[VECS];  // R, and Y + R
  uint32_t safe[VECS];   // which rows are finite, a bit each
  float step, inverse;

  FASTVQ_INLINE ByteSet(const GroupCodes& codes, const float* centred, const float* squares) {
    const Floats factor = splat(codes.norm_factor), offset = splat(codes.norm_offset);
    Floats own[VECS], most{};
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) {
      own[v] = Floats{};
#pragma GCC unroll 16
      for (int d = 0; d < PADDED; ++d)
        own[v] = maximum(magnitude(load<Floats>(column(centred, v) + d * STAND * LANES)), own[v]);
      safe[v] = bits(greater(splat(LARGEST_SQUARE), load<Floats>(squares + v * LANES)));
      own[v] = Floats(_mm512_maskz_mov_ps(static_cast<__mmask16>(safe[v]), own[v]));
      most = maximum(own[v], most);
    }
    float largest_entry = largest(most);
    const auto beyond = [&](float limit) {
      int rows = 0;
      for (int v = 0; v < VECS; ++v) rows += __builtin_popcount(bits(greater(own[v], splat(limit))));
      return rows;
    };
    // A few far larger rows are cut off, which their R tells, lest all others lose what bytes can say.
    for (int halved = 0; halved < 16 && beyond(largest_entry / 2) <= VECS * LANES / 8; ++halved) largest_entry /= 2;
    step = step_of(largest_entry);
    step = step > codes.least_step ? step : codes.least_step;
    inverse = 1 / step;
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) {
      Floats squares_lost{};
      __m512i quads[PADDED / 4], total = _mm512_setzero_si512();
      column_bytes<PADDED>(column(centred, v), STAND * LANES, step, quads, squares_lost);
      const Floats Y = square_root((load<Floats>(squares + v * LANES) + offset) * factor);
      const Floats R = square_root((squares_lost + offset) * factor);
      lost[v] = R * splat(1 + 0x1p-9f);
      whole[v] = (Y + R) * splat(1 + 0x1p-9f);
#pragma GCC unroll 4
      for (int i = 0; i < PADDED / 4; ++i) {
        total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), quads[i]);
        entries[i][v] = quads[i];
      }
      begins[v] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(total, 7));
    }
  }

  // Where the first values of a vector's rows stand.
  static FASTVQ_INLINE const float* column(const float* centred, int v) {
    return centred + (v / STAND * STAND * PADDED + v % STAND) * LANES;
  }
};

// What a block of rows takes. Visits are what is left to score in float32: a panel and a row that some code of it may
// be nearest to.
struct ColumnScratch {
  char* sets;               // (block / set) ByteSet
  float* slacks;            // (block): of float32 scores
  int64_t* leaders;         // (block): the best score so far, ordered, and its code below it
  int32_t* rivals;          // (block): the best score of all others, ordered
  float* most;              // (together / set, panels, set): upper bounds of each panel's scores
  int32_t* visitors;        // (panels, width): rows
  int32_t* counts;          // (panels)
  int64_t together, width;  // rows whose visits are listed together, and room for them

  void lay_out(Arena& arena, const PreparedCodes& call, int64_t padded, int64_t block) {
    const int64_t rows = MOST_VISITS / call.panels / LARGEST_SET * LARGEST_SET;
    together = rows < LARGEST_SET ? LARGEST_SET : rows < block ? rows : block;
    width = together + LANES;
    const size_t set = padded == 8 ? sizeof(ByteSet<8>) : sizeof(ByteSet<16>);
    sets = arena.take<char>(block / LARGEST_SET * static_cast<int64_t>(set));
    slacks = arena.take<float>(block);
    leaders = arena.take<int64_t>(block);
    rivals = arena.take<int32_t>(block);
    most = arena.take<float>(call.panels * together);
    visitors = arena.take<int32_t>(call.panels * width);
    counts = arena.take<int32_t>(call.panels);
  }
};

// The biases of the next panels in products of the rows' and the codes' steps.
template <int PADDED>
FASTVQ_INLINE void whole_biases(const float* packed, const float* columns, int64_t panels, float inverse,
                                int32_t* biases) {
  for (int64_t panel = 0; panel < panels && panel < AHEAD; ++panel, packed += (PADDED + 1) * PANEL) {
    const Floats scale = splat(inverse * columns[panel * column_size(PADDED) + 1]);
    for (int k = 0; k < PANEL; k += LANES, biases += LANES)
      _mm512_store_si512(biases, _mm512_cvtps_epi32(maximum(load<Floats>(packed + k) * scale, splat(-ABSENT_STEPS))));
  }
}

// Bounds the scores of a set of rows, `first_row` and those after it, panel by panel, and lists each row for the panel
// that has its largest score in bytes.
template <int PADDED>
static void bound_by_bytes(const ByteSet<PADDED>& rows, const float* packed, const float* columns, int64_t panels,
                           int first_row, int count, float* most, const ColumnScratch& s) {
  constexpr int VECS = BYTE_VECTORS, SET = LARGEST_SET;
  Floats best[VECS];
  Ints where[VECS];
#pragma GCC unroll 4
  for (int v = 0; v < VECS; ++v) {
    best[v] = splat(-HUGE_VALF);
    where[v] = Ints{};
  }
  alignas(64) int32_t biases[AHEAD * PANEL];
  for (int64_t panel = 0; panel < panels; ++panel) {
    const float* column = columns + panel * column_size(PADDED);
    if (panel % AHEAD == 0)
      whole_biases<PADDED>(packed + panel * (PADDED + 1) * PANEL, column, panels - panel, rows.inverse, biases);
    const int32_t* bias = biases + panel % AHEAD * PANEL;
    const float unit = rows.step * column[0], norm = column[2], rounding = column[3];
    __m512i top[VECS];
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) top[v] = _mm512_set1_epi32(INT32_MIN);
    column += COLUMN_HEADER;
#pragma GCC unroll 4
    for (int k = 0; k < PANEL; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < VECS; ++v) {
        __m512i sums = _mm512_set1_epi32(bias[k]);
#pragma GCC unroll 4
        for (int i = 0; i < PADDED / 4; ++i)
          add_products(sums, _mm512_castps_si512(_mm512_set1_ps(column[i * PANEL + k])), rows.entries[i][v]);
        top[v] = _mm512_max_epi32(sums, top[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) {
      const Floats score = _mm512_cvtepi32_ps(_mm512_add_epi32(top[v], rows.begins[v])) * splat(unit);
      const Floats margin = rows.lost[v] * splat(norm) + rows.whole[v] * splat(rounding) + splat(3 * unit);
      store(most + panel * SET + v * LANES, score + margin);
      const auto more = greater(score, best[v]);
      best[v] = maximum(score, best[v]);
      where[v] = select(more, splat(static_cast<int32_t>(panel)), where[v]);
    }
  }
  alignas(64) int32_t leading[SET];
  uint64_t present = 0;
  for (int v = 0; v < VECS; ++v) {
    present |= uint64_t{rows.safe[v]} << v * LANES;
    store(leading + v * LANES, where[v]);
  }
  for (int r = 0; r < count; ++r) {
    s.visitors[leading[r] * s.width + s.counts[leading[r]]] = first_row + r;
    s.counts[leading[r]] += present >> r & 1;
    most[leading[r] * SET + r] = NAN;  // reaches nothing: list_rivals passes it over
  }
}

// The bits of a float as a whole number of the same order, and back.
FASTVQ_INLINE int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & INT32_MAX); }
FASTVQ_INLINE Floats ordered_floats(Ints whole) { return (Floats)(whole ^ (whole >> 31 & INT32_MAX)); }
constexpr int32_t LEAST_ORDERED = -0x7f800001;  // of minus infinity
constexpr int64_t WORD = int64_t{1} << 32;

// The best scores of LANES leaders.
FASTVQ_INLINE Floats best_so_far(const int64_t* leaders) {
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  const __m512i low = _mm512_load_si512(leaders), high = _mm512_load_si512(leaders + LANES / 2);
  return ordered_floats((Ints)_mm512_permutex2var_epi32(low, odd, high));
}

// Tells leaders and rivals of LANES rows apart again.
FASTVQ_INLINE void tell_apart(const int64_t* leaders, const int32_t* rivals, float* best, int32_t* where,
                              float* second) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i low = _mm512_load_si512(leaders), high = _mm512_load_si512(leaders + LANES / 2);
  store(best, best_so_far(leaders));
  store(where, _mm512_permutex2var_epi32(low, even, high));
  store(second, ordered_floats(load<Ints>(rivals)));
}

// Lists a set of rows, whose best scores so far are known, for all other panels that may have a better one.
template <int PADDED>
static void list_rivals(const GroupCodes& codes, const ByteSet<PADDED>& rows, const float* squares, int64_t panels,
                        int first_row, int count, const float* most, const ColumnScratch& s) {
  const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int v = 0; v < BYTE_VECTORS; ++v) {
    const int r = first_row + v * LANES;
    const Floats slack = slack_of(codes, codes.slack[BYTES], load<Floats>(squares + v * LANES), Floats{});
    const Floats lowest = threshold(best_so_far(s.leaders + r), slack);
    const uint64_t present = (~uint64_t{0} >> (64 - count) >> v * LANES) & rows.safe[v];
    const __m512i own = _mm512_add_epi32(_mm512_set1_epi32(r), numbers);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const Floats bound = load<Floats>(most + panel * LARGEST_SET + v * LANES);
      const auto hits = static_cast<__mmask16>(bits(at_least(bound, lowest)) & present);
      int32_t& listed = s.counts[panel];
      _mm512_storeu_si512(s.visitors + panel * s.width + listed, _mm512_maskz_compress_epi32(hits, own));
      listed += __builtin_popcount(hits);
    }
  }
}

// Scores the codes of one panel for some rows in float32; raises each row's best score and the best of all others.
// Where several codes are within its slack of the best, that one's score counts as both, and any of them is the best.
template <int PADDED>
static void score_rows(const float* centred, const float* panel, int32_t first_code, const int32_t* list, int count,
                       const ColumnScratch& s) {
  Floats codes[PADDED + 1][VECTORS];
#pragma GCC unroll 17
  for (int d = 0; d <= PADDED; ++d)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) codes[d][v] = load<Floats>(panel + d * PANEL + v * LANES);
  for (int i = 0; i < count; ++i) {
    const int32_t r = list[i];
    const float* row = centred + r * PADDED;
    Floats score[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) score[v] = codes[0][v];
#pragma GCC unroll 16
    for (int d = 0; d < PADDED; ++d)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) score[v] = multiply_add(splat(row[d]), codes[d + 1][v], score[v]);
    Floats most = score[0];
#pragma GCC unroll 4
    for (int v = 1; v < VECTORS; ++v) most = maximum(score[v], most);
    const float top = largest(most);
    const Floats lowest = splat(threshold(top, s.slacks[r]));
    uint64_t near = 0;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) near |= uint64_t{bits(at_least(score[v], lowest))} << v * LANES;
    // By whole numbers, which are selected without a branch: nothing would foresee one.
    const int32_t now = ordered(reinterpret<int32_t>(top));
    const int64_t leader = int64_t{now} * WORD + first_code + __builtin_ctzll(near), before = s.leaders[r];
    const auto best = static_cast<int32_t>(before >> 32);
    int32_t rival = now < best ? now : best;
    rival = near & (near - 1) ? now : rival;
    s.leaders[r] = leader > before ? leader : before;
    s.rivals[r] = rival > s.rivals[r] ? rival : s.rivals[r];
  }
}

// The best codes of the rows `from` to `end` of a block, and the best scores of all others or, where these are out of
// the question, something below. `centred` has the rows in columns, `lying` in rows; `prefetch` is called for each set.
// Returns the number of visits.
template <int PADDED, class Prefetch>
static int64_t best_by_columns(const GroupCodes& codes, const float* centred, const float* lying, const float* squares,
                               int from, int end, const float* packed, const float* columns, int64_t panels,
                               const Prefetch& prefetch, ColumnScratch& s, float* best, int32_t* where, float* second) {
  constexpr int SET = LARGEST_SET;
  auto* sets = reinterpret_cast<ByteSet<PADDED>*>(s.sets);
  for (int first = from; first < end; first += SET)
    new (sets + first / SET) ByteSet<PADDED>(codes, centred + first * PADDED, squares + first);
  // Whole sets: what comes next reads them whole.
  for (int r = from; r < from + round_up(end - from, SET); r += LANES) {
    store(s.slacks + r, slack_of(codes, codes.slack[SINGLES], load<Floats>(squares + r), Floats{}));
    store(s.leaders + r, splat(LEAST_ORDERED * WORD));
    store(s.leaders + r + LANES / 2, splat(LEAST_ORDERED * WORD));
    store(s.rivals + r, splat(LEAST_ORDERED));
  }
  int64_t visits = 0;
  for (int first = from, last; first < end; first = last) {
    last = end - first < s.together ? end : first + static_cast<int>(s.together);
    const auto score_listed = [&] {
      for (int64_t panel = 0; panel < panels; ++panel) {
        if (s.counts[panel] == 0) continue;
        visits += s.counts[panel];
        score_rows<PADDED>(lying, packed + panel * (PADDED + 1) * PANEL, static_cast<int32_t>(panel * PANEL),
                           s.visitors + panel * s.width, s.counts[panel], s);
      }
    };
    const auto size = [&](int r) { return last - r < SET ? last - r : SET; };
    std::memset(s.counts, 0, panels * sizeof(int32_t));
    for (int r = first; r < last; r += SET) {
      prefetch(r, SET);
      bound_by_bytes<PADDED>(sets[r / SET], packed, columns, panels, r, size(r), s.most + (r - first) * panels, s);
    }
    score_listed();
    std::memset(s.counts, 0, panels * sizeof(int32_t));
    for (int r = first; r < last; r += SET)
      list_rivals<PADDED>(codes, sets[r / SET], squares + r, panels, r, size(r), s.most + (r - first) * panels, s);
    score_listed();
  }
  for (int r = from; r < from + round_up(end - from, SET); r += LANES)
    tell_apart(s.leaders + r, s.rivals + r, best + r, where + r, second + r);
  return visits;
}

}  // namespace fastvq::cpu::FASTVQ_ISA

#endif
