// The backward pass of kl_div: rows of few classes as they lie in memory, register after register;
// longer rows one by one.
#include "cpu/kernels/cursor.h"
#include "cpu/kernels/kl_div_gradient.h"
#include "cpu/kernels/wide.h"
#include "cpu/kl_div.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

constexpr int kRows = kLanes<float>;  // of a tile
constexpr int kUnroll = 2;            // registers that are worked on side by side
constexpr int kStep = kUnroll * kRows;
constexpr int64_t kMaxFlatClasses = 64;
constexpr float kLowestLogRatio = -50;

// What the rows of a tile need, side by side.
struct Tile {
  float reference[kRows], centre[kRows], shift[kRows], factor[kRows], kl[kRows];
  bool exact;  // the saved results are beyond what the float formulas take
};

template <class Stored>
class Backward {
 public:
  using Args = KlDivBackward;
  using T = Compute<Stored>;

  Backward(const Args& args, void* scratch) : args_(args) {
    double* doubles = static_cast<double*>(scratch);
    total_ = doubles;
    exact_dp_ = doubles + args.classes;
    exact_dq_ = doubles + 2 * args.classes;
    packed_ = reinterpret_cast<Stored*>(doubles + 3 * args.classes);
    gradient_ = reinterpret_cast<float*>(doubles + 5 * args.classes);
    sum_ = gradient_ + args.classes;
  }

  void run(int64_t begin, int64_t end) {
    if (is_flat()) {
      for (int64_t i = 0; i < kRows * (args_.classes + 1); ++i)
        row_of_[i] = static_cast<int32_t>(i / args_.classes);
    }
    if (args_.summed_operand < 0) {
      rows(args_.kept, begin, end - begin, {});
    } else {
      for (int64_t task = begin; task < end; ++task)
        summed(task / args_.chunks, task % args_.chunks);
    }
  }

 private:
  struct Offsets {
    int64_t of[Args::kOperands];
    int64_t operator[](int operand) const { return of[operand]; }
  };

  bool is_flat() const { return sizeof(T) == sizeof(float) && args_.classes <= kMaxFlatClasses; }
  bool sums(int operand) const { return args_.summed_operand == operand; }

  const Stored* p(int64_t offset) const { return static_cast<const Stored*>(args_.p) + offset; }
  const Stored* q(int64_t offset) const { return static_cast<const Stored*>(args_.q) + offset; }
  Stored* output(int operand, int64_t offset) const {
    return static_cast<Stored*>(operand == Args::kDp ? args_.dp : args_.dq) + offset;
  }
  bool wants(int operand) const { return (operand == Args::kDp ? args_.dp : args_.dq) != nullptr; }
  // Where the gradient of a row goes straight to memory.
  Stored* direct(int operand, int64_t offset) const {
    return wants(operand) && !sums(operand) ? output(operand, offset) : nullptr;
  }

  // ------------------------------------------------------------------------------ sums over rows

  void summed(int64_t kept_row, int64_t chunk) {
    const int64_t classes = args_.classes;
    int64_t count = 1;
    for (int dim = 0; dim < args_.summed.dims; ++dim) count *= args_.summed.sizes[dim];
    const int64_t begin = count * chunk / args_.chunks, end = count * (chunk + 1) / args_.chunks;
    const Cursor<Args::kOperands> kept(args_.kept, kept_row);
    Offsets base;
    for (int k = 0; k < Args::kOperands; ++k) base.of[k] = kept.offset(k);
    for (int64_t c = 0; c < classes; ++c) total_[c] = 0;
    rows(args_.summed, begin, end - begin, base);
    if (args_.chunks > 1) {
      memcpy(args_.partial + (kept_row * args_.chunks + chunk) * classes, total_,
             sizeof(double) * classes);
    } else {
      Stored* to = output(args_.summed_operand, base[args_.summed_operand]);
      for (int64_t c = 0; c < classes; ++c) put(to + c, total_[c]);
    }
  }

  static void put(Stored* to, double x) { store_first(to, Vec<T>(static_cast<T>(x)), 1); }

  // ------------------------------------------------------------------------------------- a tile

  void rows(const RowMap<Args::kOperands>& map, int64_t first, int64_t count, const Offsets& base) {
    if (count == 0) return;
    Cursor<Args::kOperands> at(map, first);
    while (count > 0) {
      int64_t run = at.run() < kRows ? at.run() : kRows;
      run = run < count ? run : count;
      Offsets offsets, strides;
      for (int k = 0; k < Args::kOperands; ++k) {
        offsets.of[k] = base[k] + at.offset(k);
        strides.of[k] = at.stride(k);
      }
      if constexpr (sizeof(T) == sizeof(float)) {
        const Tile tile = prepare(offsets, strides, run);
        if (tile.exact || !(is_flat() && is_dense(offsets, strides, run)
                                ? flat(tile, offsets, strides, run)
                                : one_by_one(tile, offsets, strides, run))) {
          exact(offsets, strides, run);
        }
      } else {
        exact(offsets, strides, run);
      }
      count -= run;
      if (count > 0) at.advance(run);
    }
  }

  template <class Value>
  static Value at(const void* values, const Offsets& offsets, const Offsets& strides, int operand,
                  int64_t i) {
    return static_cast<const Value*>(values)[offsets[operand] + i * strides[operand]];
  }

  // A saved number of each row, and zeros where the tile has fewer rows.
  static FASTMEM_INLINE Vec<float> of_rows(const void* values, const Offsets& offsets,
                                           const Offsets& strides, int operand, int64_t count) {
    const float* first = static_cast<const float*>(values) + offsets[operand];
    if (strides[operand] == 1) return count == kRows ? load(first) : load_first(first, count);
    float lanes[kRows] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = first[i * strides[operand]];
    return load(lanes);
  }

  Tile prepare(const Offsets& offsets, const Offsets& strides, int64_t count) const {
    const double temperature = args_.temperature, inverse = 1 / temperature;
    const float scale = this->scale();
    const auto saved = [&](const void* values) __attribute__((always_inline)) {
      return of_rows(values, offsets, strides, Args::kSaved, count);
    };
    constexpr int kHalves = kParts<float>;
    Vec<double> lse_p[kHalves], difference[kHalves], low[kHalves], top[kHalves], centre[kHalves],
        shift[kHalves], unit[kHalves];
    widen(saved(args_.lse_p), lse_p);
    widen(saved(args_.centre), difference);
    widen(saved(args_.shift), low);
    for (int i = 0; i < kHalves; ++i) {
      difference[i] -= low[i];
      top[i] = lse_p[i] * temperature;
      centre[i] = difference[i] * temperature;
    }
    const auto rounded_top = narrow(top), rounded_centre = narrow(centre), kl = saved(args_.kl);
    widen(rounded_top, top);
    widen(rounded_centre, centre);
    log_of_weight_unit(rounded_top, scale, temperature, unit);
    for (int i = 0; i < kHalves; ++i) {
      shift[i] = centre[i] * inverse - difference[i];
      unit[i] = (unit[i] - lse_p[i]) * Constants<double>::kLog2E;
    }
    const auto grad = of_rows(args_.grad, offsets, strides, Args::kGrad, count);
    const auto factor = grad * this->inverse() * exp2(narrow(unit));
    Tile tile;
    store(tile.reference, Weights<float, 1>::reference(rounded_top, scale));
    store(tile.centre, rounded_centre);
    store(tile.shift, narrow(shift));
    store(tile.factor, select(abs(kl) < kInfinity, factor, kNaN));
    store(tile.kl, kl);
    tile.exact = any(abs(rounded_top) * scale >= Weights<float, 1>::kLargestScaled);
    return tile;
  }

  float scale() const { return static_cast<float>(Constants<double>::kLog2E / args_.temperature); }
  float inverse() const { return static_cast<float>(1 / args_.temperature); }

  // -------------------------------------------------------------------------------- flat, short

  // Whether all rows lie behind each other, in memory and in the gradients.
  bool is_dense(const Offsets& offsets, const Offsets& strides, int64_t count) const {
    const auto dense = [&](int operand) { return count == 1 || strides[operand] == args_.classes; };
    if (args_.p_class_stride != 1 || args_.q_class_stride != 1) return false;
    for (const int operand : {Args::kDp, Args::kDq}) {
      if (direct(operand, offsets[operand]) != nullptr && !dense(operand)) return false;
    }
    return (dense(Args::kP) || strides[Args::kP] == 0) &&
           (dense(Args::kQ) || strides[Args::kQ] == 0);
  }

  // The rows of an operand behind each other: where they are, or, for a shared row, copies of it.
  const Stored* laid_out(const Stored* rows, int64_t stride, int64_t count, Stored* copies) const {
    if (stride != 0 || count == 1) return rows;
    for (int64_t i = 0; i < count; ++i)
      memcpy(copies + i * args_.classes, rows, sizeof(Stored) * args_.classes);
    return copies;
  }

  bool flat(const Tile& tile, const Offsets& offsets, const Offsets& strides, int64_t count) {
    return args_.temperature == 1 ? flat<false>(tile, offsets, strides, count)
                                  : flat<true>(tile, offsets, strides, count);
  }

  template <bool kScaled>
  bool flat(const Tile& tile, const Offsets& offsets, const Offsets& strides, int64_t count) {
    Stored* to_dp = direct(Args::kDp, offsets[Args::kDp]);
    Stored* to_dq = direct(Args::kDq, offsets[Args::kDq]);
    const Stored* p = laid_out(this->p(offsets[Args::kP]), strides[Args::kP], count, copies_);
    const Stored* q = laid_out(this->q(offsets[Args::kQ]), strides[Args::kQ], count,
                               copies_ + kRows * kMaxFlatClasses);
    const auto reference = load(tile.reference), centre = load(tile.centre),
               shift = load(tile.shift), factor = load(tile.factor), kl = load(tile.kl);
    const int64_t elements = count * args_.classes;
    Vec<float, kUnroll> lowest = 0;
    for (int64_t at = 0; at < elements; at += kStep) {
      const int64_t left = elements - at;
      const bool whole = left >= kStep;
      const auto spread = [&](Vec<float> x) __attribute__((always_inline)) {
        constexpr int N = kUnroll;
        Vec<float, N> y;
        FASTMEM_EACH_REGISTER(y, look_up(x.r[0], load_indices(row_of_ + at + i * kRows)));
        return y;
      };
      const auto x = whole ? load<kUnroll>(p + at) : load_first<kUnroll>(p + at, left),
                 y = whole ? load<kUnroll>(q + at) : load_first<kUnroll>(q + at, left);
      const GradientRows<kUnroll> rows{spread(reference), spread(centre), spread(shift),
                                       spread(factor), spread(kl)};
      auto low = lowest;
      const auto gradient = gradients<kScaled>(x, y, rows, scale(), inverse(), low);
      lowest = whole ? low : select(lanes_below<float, kUnroll>(left), low, lowest);
      write(to_dp, sums(Args::kDp), at, gradient.dp, left);
      write(to_dq, sums(Args::kDq), at, gradient.dq, left);
    }
    if (any(!(lowest > kLowestLogRatio))) return false;
    if (args_.summed_operand >= 0) {
      for (int64_t i = 0; i < elements; i += args_.classes) {
        for (int64_t c = 0; c < args_.classes; ++c) total_[c] += flat_[i + c];
      }
    }
    return true;
  }

  FASTMEM_INLINE void write(Stored* to, bool summed, int64_t at, Vec<float, kUnroll> x,
                            int64_t left) {
    if (summed) store(flat_ + at, x);
    if (to == nullptr) return;
    left >= kStep ? store(to + at, x) : store_first(to + at, x, left);
  }

  static Register<int32_t> load_indices(const int32_t* from) {
    Register<int32_t> x;
    memcpy(&x, from, sizeof(x));
    return x;
  }

  // ------------------------------------------------------------------------------------ row by row

  const Stored* packed(const Stored* row, int64_t stride, Stored* to) const {
    if (stride == 1) return row;
    for (int64_t c = 0; c < args_.classes; ++c) to[c] = row[c * stride];
    return to;
  }

  const Stored* packed_p(const Offsets& offsets, const Offsets& strides, int64_t i) const {
    return packed(p(offsets[Args::kP] + i * strides[Args::kP]), args_.p_class_stride, packed_);
  }
  const Stored* packed_q(const Offsets& offsets, const Offsets& strides, int64_t i) const {
    return packed(q(offsets[Args::kQ] + i * strides[Args::kQ]), args_.q_class_stride,
                  packed_ + args_.classes);
  }

  bool one_by_one(const Tile& tile, const Offsets& offsets, const Offsets& strides, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const Stored *p = packed_p(offsets, strides, i), *q = packed_q(offsets, strides, i);
      Stored* to_dp = direct(Args::kDp, offsets[Args::kDp] + i * strides[Args::kDp]);
      Stored* to_dq = direct(Args::kDq, offsets[Args::kDq] + i * strides[Args::kDq]);
      const bool fine = args_.temperature == 1 ? row<false>(tile, i, p, q, to_dp, to_dq)
                                               : row<true>(tile, i, p, q, to_dp, to_dq);
      if (!fine) {
        exact_row_at(offsets, strides, i);
      } else if (args_.summed_operand >= 0) {
        for (int64_t c = 0; c < args_.classes; ++c) total_[c] += gradient_[c];
      }
    }
    return true;
  }

  template <bool kScaled>
  bool row(const Tile& tile, int64_t i, const Stored* p, const Stored* q, Stored* to_dp,
           Stored* to_dq) {
    const int64_t classes = args_.classes;
    const GradientRows<kUnroll> rows{tile.reference[i], tile.centre[i], tile.shift[i],
                                     tile.factor[i], tile.kl[i]};
    const float scale = this->scale(), inverse = this->inverse();
    Vec<float, kUnroll> lowest = 0;
    const auto part = [&](int64_t c, int64_t count) {
      auto low = lowest;
      const auto gradient =
          gradients<kScaled>(load_first<kUnroll>(p + c, count), load_first<kUnroll>(q + c, count),
                             rows, scale, inverse, low);
      lowest = select(lanes_below<float, kUnroll>(count), low, lowest);
      if (to_dp != nullptr) store_first(to_dp + c, gradient.dp, count);
      if (to_dq != nullptr) store_first(to_dq + c, gradient.dq, count);
      if (args_.summed_operand >= 0)
        store_first(gradient_ + c, sums(Args::kDp) ? gradient.dp : gradient.dq, count);
    };
    int64_t c = 0;
    for (; c + kStep <= classes; c += kStep) {
      const auto gradient = gradients<kScaled>(load<kUnroll>(p + c), load<kUnroll>(q + c), rows,
                                               scale, inverse, lowest);
      if (to_dp != nullptr) store(to_dp + c, gradient.dp);
      if (to_dq != nullptr) store(to_dq + c, gradient.dq);
      if (args_.summed_operand >= 0)
        store(gradient_ + c, sums(Args::kDp) ? gradient.dp : gradient.dq);
    }
    if (c < classes) part(c, classes - c);
    return !any(!(lowest > kLowestLogRatio));
  }

  // -------------------------------------------------------------------------------- any values

  void exact(const Offsets& offsets, const Offsets& strides, int64_t count) {
    for (int64_t i = 0; i < count; ++i) exact_row_at(offsets, strides, i);
  }

  void exact_row_at(const Offsets& offsets, const Offsets& strides, int64_t i) {
    const int64_t classes = args_.classes;
    const double grad = at<T>(args_.grad, offsets, strides, Args::kGrad, i);
    double* values[] = {wants(Args::kDp) ? exact_dp_ : nullptr,
                        wants(Args::kDq) ? exact_dq_ : nullptr};
    exact_gradient(packed_p(offsets, strides, i), packed_q(offsets, strides, i), classes,
                   args_.temperature, grad / args_.temperature, values[0], values[1]);
    for (const int operand : {Args::kDp, Args::kDq}) {
      const double* from = values[operand - Args::kDp];
      if (from == nullptr) continue;
      Stored* to = output(operand, offsets[operand] + i * strides[operand]);
      for (int64_t c = 0; c < classes; ++c)
        sums(operand) ? void(total_[c] += from[c]) : put(to + c, from[c]);
    }
  }

  const Args& args_;
  double *total_, *exact_dp_, *exact_dq_;
  Stored* packed_;
  float *gradient_, *sum_;
  // One register more than there are elements: the last step may reach beyond them.
  alignas(64) int32_t row_of_[kRows * (kMaxFlatClasses + 1)];
  alignas(64) float flat_[kRows * (kMaxFlatClasses + 1)];
  alignas(64) Stored copies_[2 * kRows * kMaxFlatClasses];
};

template <class Stored>
void backward(const KlDivBackward& args, int64_t begin, int64_t end, void* scratch) {
  Backward<Stored>(args, scratch).run(begin, end);
}

template <class Stored>
void add_up(const KlDivBackward& args, int64_t begin, int64_t end) {
  const int64_t classes = args.classes;
  for (int64_t row = begin; row < end; ++row) {
    Stored* to =
        static_cast<Stored*>(args.summed_operand == KlDivBackward::kDp ? args.dp : args.dq) +
        row * classes;
    const double* from = args.partial + row * args.chunks * classes;
    for (int64_t c = 0; c < classes; ++c) {
      double total = 0;
      for (int64_t chunk = 0; chunk < args.chunks; ++chunk) total += from[chunk * classes + c];
      store_first(to + c, Vec<Compute<Stored>>(static_cast<Compute<Stored>>(total)), 1);
    }
  }
}

}  // namespace

extern const KlDivBackwardKernels kl_div_backward;
const KlDivBackwardKernels kl_div_backward = {
    {&backward<float>, &backward<double>, &backward<Half>, &backward<BFloat16>},
    {&add_up<float>, &add_up<double>, &add_up<Half>, &add_up<BFloat16>}};

}  // namespace fastmem::cpu::FASTMEM_ISA
