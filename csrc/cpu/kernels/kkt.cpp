// The products of kkt_residual and the chains of element-wise operations between them.
//
// A product goes through blocks: kBlock of its depth, and as many rows as leave a copy of them in
// the second cache. The copy has the rows of a tile side by side, so a tile reads two streams: its
// rows, and a panel of b whose block stays in the first cache while all rows pass by. The order in
// which a sum adds up depends on the depth alone.
#include "cpu/kernels/kkt.h"

#include "cpu/kernels/math.h"
#include "cpu/kernels/mlp_panels.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

// Rows of a panel in the first cache, and rows of a copied by it in the second.
constexpr int64_t kBlock = 512;
constexpr int64_t kBlockOfRows = 20 * kTileRows;

// Strips of a block of rows, all of one height or one less.
struct Strips {
  int64_t rows, count;

  FASTMEM_INLINE explicit Strips(int64_t rows_) : rows(rows_), count(divide_up(rows_, kTileRows)) {}
  FASTMEM_INLINE int64_t begin(int64_t strip) const { return rows * strip / count; }
  FASTMEM_INLINE int64_t height(int64_t strip) const { return begin(strip + 1) - begin(strip); }
};

// [strip][t][row of the strip], by transposes in registers. A register that is stored may reach
// beyond the rows of its t: what it spoils is written next, and the copy ends with a register to
// spare.
template <class T>
void copy_rows(const KktProduct& call, int64_t first_row, Strips strips, int64_t begin,
               int64_t depth, T* copy) {
  constexpr int kSide = kLanes<T>, kGroups = (kTileRows + kSide - 1) / kSide;
  for (int64_t strip = 0; strip < strips.count; ++strip) {
    const int64_t row = strips.begin(strip), height = strips.height(strip);
    const T* from = static_cast<const T*>(call.a) + (first_row + row) * call.a_row + begin;
    T* to = copy + row * depth;
    int64_t t = 0;
    for (; t + kSide <= depth; t += kSide) {
      grad::Vec<T> block[kGroups][kSide];
#pragma GCC unroll 4
      for (int group = 0; group < kGroups; ++group) {
#pragma GCC unroll 16
        for (int i = 0; i < kSide; ++i) {
          const int64_t at = group * kSide + i;
          block[group][i] =
              at < height ? grad::load<T>(from + at * call.a_row + t) : grad::Vec<T>{};
        }
        grad::transpose<T>(block[group]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) {
#pragma GCC unroll 4
        for (int group = 0; group < kGroups; ++group) {
          if (group * kSide < height)
            grad::store(to + (t + i) * height + group * kSide, block[group][i]);
        }
      }
    }
    for (; t < depth; ++t) {
      for (int64_t i = 0; i < height; ++i) to[t * height + i] = from[i * call.a_row + t];
    }
  }
}

// [t][column of the panel], with zeros beyond the last column.
template <class T>
void copy_panel(const KktProduct& call, int64_t panel, int64_t begin, int64_t depth, T* copy) {
  const int64_t width = least(kPanel<T>, call.columns - panel * kPanel<T>);
  const T* from =
      static_cast<const T*>(call.b) + begin * call.b_depth + panel * kPanel<T> * call.b_column;
  if (width == kPanel<T> && call.b_column == 1) {
    for (int64_t t = 0; t < depth; ++t) {
      for (int64_t j = 0; j < kPanel<T>; j += kLanes<T>)
        store_register(copy + t * kPanel<T> + j, load_register(from + t * call.b_depth + j));
    }
  } else if (width == kPanel<T> && call.b_depth == 1) {
    constexpr int kSide = kLanes<T>;
    int64_t t = 0;
    for (; t + kSide <= depth; t += kSide) {
      for (int64_t j = 0; j < kPanel<T>; j += kSide) {
        grad::Vec<T> block[kSide];
#pragma GCC unroll 16
        for (int i = 0; i < kSide; ++i)
          block[i] = grad::load<T>(from + (j + i) * call.b_column + t);
        grad::transpose<T>(block);
#pragma GCC unroll 16
        for (int i = 0; i < kSide; ++i) grad::store(copy + (t + i) * kPanel<T> + j, block[i]);
      }
    }
    for (; t < depth; ++t) {
      for (int64_t j = 0; j < kPanel<T>; ++j) copy[t * kPanel<T> + j] = from[j * call.b_column + t];
    }
  } else {
    for (int64_t t = 0; t < depth; ++t) {
      for (int64_t j = 0; j < kPanel<T>; ++j)
        copy[t * kPanel<T> + j] = j < width ? from[t * call.b_depth + j * call.b_column] : T{0};
    }
  }
}

// What a tile fetches for later: a row of a panel whenever it has used `step` rows of its own.
template <class T>
struct Ahead {
  const T* panel;
  int64_t step;

  // The share of one strip, so that the next panel is there when all have passed.
  static FASTMEM_INLINE Ahead share(const T* next, int64_t depth, Strips strips, int64_t strip) {
    return {next + depth * strip / strips.count * kPanel<T>, strips.count};
  }

  FASTMEM_INLINE void fetch_row() {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t j = 0; j < kPanel<T>; j += kLine) __builtin_prefetch(panel + j);
    panel += kPanel<T>;
  }
};

template <class T, int kRows>
__attribute__((noinline)) void tile(int64_t depth, const T* rows, const T* panel, T* c,
                                    int64_t c_row, T alpha, T beta, Ahead<T> ahead) {
  Register<T> sums[kRows][kTileRegisters] = {};
  for (int64_t t = 0; t < depth;) {
    const int64_t stop = least(depth, t + ahead.step);
    ahead.fetch_row();
    for (; t < stop; ++t, rows += kRows, panel += kPanel<T>) {
      Register<T> columns[kTileRegisters];
#pragma GCC unroll 8
      for (int j = 0; j < kTileRegisters; ++j) {
        columns[j] = load_register(panel + j * kLanes<T>);
        grad::keep(columns[j]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Register<T> element = rows[i] - Register<T>{};
#pragma GCC unroll 8
        for (int j = 0; j < kTileRegisters; ++j) sums[i][j] = fma(element, columns[j], sums[i][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i, c += c_row) {
#pragma GCC unroll 8
    for (int j = 0; j < kTileRegisters; ++j) {
      Register<T> sum = sums[i][j] * alpha;
      if (beta != 0) sum += load_register(c + j * kLanes<T>) * beta;
      store_register(c + j * kLanes<T>, sum);
    }
  }
}

template <class T>
FASTMEM_INLINE void tile_of(int64_t height, int64_t depth, const T* rows, const T* panel, T* c,
                            int64_t c_row, T alpha, T beta, Ahead<T> ahead) {
  switch (height) {
    case 1:
      return tile<T, 1>(depth, rows, panel, c, c_row, alpha, beta, ahead);
    case 2:
      return tile<T, 2>(depth, rows, panel, c, c_row, alpha, beta, ahead);
    case 3:
      return tile<T, 3>(depth, rows, panel, c, c_row, alpha, beta, ahead);
    case 4:
      return tile<T, 4>(depth, rows, panel, c, c_row, alpha, beta, ahead);
    case 5:
      return tile<T, 5>(depth, rows, panel, c, c_row, alpha, beta, ahead);
    default:
      return tile<T, 6>(depth, rows, panel, c, c_row, alpha, beta, ahead);
  }
}

// A tile whose panel has columns that c lacks.
template <class T>
void narrow_tile(int64_t height, int64_t width, int64_t depth, const T* rows, const T* panel, T* c,
                 int64_t c_row, T alpha, T beta, Ahead<T> ahead) {
  T whole[kTileRows * kPanel<T>] = {};
  if (beta != 0) {
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = 0; j < width; ++j) whole[i * kPanel<T> + j] = c[i * c_row + j];
    }
  }
  tile_of(height, depth, rows, panel, whole, kPanel<T>, alpha, beta, ahead);
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t j = 0; j < width; ++j) c[i * c_row + j] = whole[i * kPanel<T> + j];
  }
}

template <class T>
void product(const KktProduct& call, int64_t first, int64_t last, void* scratch) {
  T* const copy_of_rows = static_cast<T*>(scratch);
  T* const copy_of_panel = copy_of_rows + kBlockOfRows * kBlock + kLanes<T>;
  const int64_t blocks = divide_up(call.depth, kBlock);
  for (int64_t row = 0; row < call.rows; row += kBlockOfRows) {
    const Strips strips(least(kBlockOfRows, call.rows - row));
    // Of a symmetric product, panels that begin to the right of these rows are not wanted.
    const int64_t end = call.lower ? least(last, divide_up(row + strips.rows, kPanel<T>)) : last;
    for (int64_t block = 0; block < blocks && first < end; ++block) {
      const int64_t begin = call.depth * block / blocks;
      const int64_t depth = call.depth * (block + 1) / blocks - begin;
      copy_rows(call, row, strips, begin, depth, copy_of_rows);
      for (int64_t panel = first; panel < end; ++panel) {
        const T *columns = copy_of_panel, *next = copy_of_panel;
        if (call.b_depth != 0) {
          copy_panel(call, panel, begin, depth, copy_of_panel);
        } else {
          columns = static_cast<const T*>(call.b) + (panel * call.depth + begin) * kPanel<T>;
          next = panel + 1 < end ? columns + call.depth * kPanel<T> : columns;
        }
        const int64_t left = panel * kPanel<T>;
        const int64_t width = least(kPanel<T>, call.columns - left);
        const T alpha = static_cast<T>(call.alpha);
        const T beta = block == 0 ? static_cast<T>(call.beta) : T{1};
        for (int64_t strip = 0; strip < strips.count; ++strip) {
          const int64_t above = strips.begin(strip), height = strips.height(strip);
          if (call.lower && row + above + height <= left) continue;
          T* c = static_cast<T*>(call.c) + (row + above) * call.c_row + left;
          const T* rows = copy_of_rows + above * depth;
          const auto ahead = Ahead<T>::share(next, depth, strips, strip);
          if (width == kPanel<T>) {
            tile_of(height, depth, rows, columns, c, call.c_row, alpha, beta, ahead);
          } else {
            narrow_tile(height, width, depth, rows, columns, c, call.c_row, alpha, beta, ahead);
          }
        }
      }
    }
  }
}

template <class T>
void pack(const KktProduct& call, int64_t first, int64_t last, void* panels) {
  for (int64_t panel = first; panel < last; ++panel) {
    copy_panel(call, panel, 0, call.depth,
               static_cast<T*>(panels) + panel * call.depth * kPanel<T>);
  }
}

template <class T>
FASTMEM_INLINE Register<T> load_some(const T* from, int64_t count) {
  return count >= kLanes<T> ? load_register(from) : load_register_first(from, count);
}

template <class T>
FASTMEM_INLINE void store_some(T* to, Vec<T> x, int64_t count) {
  count >= kLanes<T> ? store_register(to, x.r[0]) : store_register_first(to, x.r[0], count);
}

template <class T>
FASTMEM_INLINE Vec<T> load_vec(const T* from, int64_t count) {
  Vec<T> x;
  x.r[0] = load_some(from, count);
  return x;
}

template <class T>
void activate(const KktActivate& call, int64_t begin, int64_t end) {
  const T* bias = static_cast<const T*>(call.bias);
  for (int64_t row = begin; row < end; ++row) {
    const T alpha = static_cast<T>(call.alpha[row / call.alpha_rows]);
    const int64_t start = row * call.columns;
    T *z_row = static_cast<T*>(call.z) + start, *a_row = static_cast<T*>(call.a) + start,
      *s_row = static_cast<T*>(call.s) + start;
    for (int64_t j = 0; j < call.columns; j += kLanes<T>) {
      const int64_t count = call.columns - j;
      Vec<T> z = load_vec(z_row + j, count);
      if (bias != nullptr) {
        z = z + load_vec(bias + j, count);
        store_some(z_row + j, z, count);
      }
      store_some(a_row + j, max(Vec<T>(0), z), count);  // (this order keeps NaN)
      const Vec<T> power = exp2(z * (-alpha * Constants<T>::kLog2E));
      // The bounds of exp2 hide NaN.
      store_some(s_row + j, Vec<T>(1) / (Vec<T>(1) + power) + (z - z), count);
    }
  }
}

template <class T>
void rise(const KktRise& call, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T alpha = static_cast<T>(call.alpha[row / call.alpha_rows]);
    const int64_t start = row * call.columns;
    const T *h_row = static_cast<const T*>(call.h) + start,
            *z_row = static_cast<const T*>(call.z) + start,
            *s_row = static_cast<const T*>(call.s) + start,
            *d_row = static_cast<const T*>(call.d) + start;
    T *v_row = static_cast<T*>(call.v) + start, *curve_row = static_cast<T*>(call.curve) + start;
    double loss = 0;
    for (int64_t j = 0; j < call.columns; j += kLanes<T>) {
      const int64_t count = call.columns - j;
      const Vec<T> z = load_vec(z_row + j, count), s = load_vec(s_row + j, count),
                   d = load_vec(d_row + j, count);
      const Vec<T> half = load_vec(h_row + j, count) - z;
      Vec<T> u = half + half;
      if (call.onward) u = u + load_vec(v_row + j, count);
      store_some(v_row + j, u * s, count);
      store_some(curve_row + j, d * (alpha * (Vec<T>(1) - s) * u - Vec<T>(2)), count);
      // (beyond the last column everything is 0)
      const Vec<T> terms = d * (half - z);
      double sum = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) sum += static_cast<double>(terms[lane]);
      loss += sum;
    }
    call.loss[row] = loss;
  }
}

template <class T>
constexpr KktKernel kernel = {
    kPanel<T>,    ((kBlockOfRows + kPanel<T>)*kBlock + kLanes<T>)*static_cast<int64_t>(sizeof(T)),
    &product<T>,  &pack<T>,
    &activate<T>, &rise<T>,
};

}  // namespace

extern const KktKernels kkt;
const KktKernels kkt = {{kernel<float>, kernel<double>}};

}  // namespace fastmem::cpu::FASTMEM_ISA
