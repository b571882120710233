// The forward pass of kl_div: which form for which rows.
#include "cpu/kernels/cursor.h"
#include "cpu/kernels/kl_div_exact.h"
#include "cpu/kernels/kl_div_lanes.h"
#include "cpu/kernels/kl_div_long.h"
#include "cpu/kernels/pieces.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

template <class Stored>
void copy_row(Stored* to, const Stored* from, int64_t stride, int64_t classes) {
  for (int64_t c = 0; c < classes; ++c) to[c] = from[c * stride];
}

template <class Stored>
class Forward {
 public:
  using Result = Compute<Stored>;

  // `scratch` holds a row of p, a row of q and a row of float, if their strides or sharing ask for
  // them.
  Forward(const KlDivForward& args, void* scratch) : args_(args), scratch_(scratch) {}

  void run(int64_t begin, int64_t end) const {
    if constexpr (sizeof(Result) == sizeof(double)) {
      for (int64_t row = begin; row < end; ++row) exact(row);
    } else if (args_.classes == 1) {
      for (int64_t row = begin; row < end; ++row) exact(row);
    } else if (args_.classes <= kMaxLaneClasses) {
      args_.temperature == 1 ? lanes<false>(begin, end) : lanes<true>(begin, end);
    } else {
      args_.temperature == 1 ? rows<false>(begin, end) : rows<true>(begin, end);
    }
  }

 private:
  const Stored* p(int64_t offset) const { return static_cast<const Stored*>(args_.p) + offset; }
  const Stored* q(int64_t offset) const { return static_cast<const Stored*>(args_.q) + offset; }

  // The row with its classes side by side.
  const Stored* packed_p(int64_t offset) const {
    return packed(p(offset), args_.p_class_stride, 0);
  }
  const Stored* packed_q(int64_t offset) const {
    return packed(q(offset), args_.q_class_stride, args_.classes);
  }

  const Stored* packed(const Stored* from, int64_t stride, int64_t place) const {
    if (stride == 1) return from;
    Stored* to = static_cast<Stored*>(scratch_) + place;
    copy_row(to, from, stride, args_.classes);
    return to;
  }

  float* weights() const {
    return reinterpret_cast<float*>(static_cast<Stored*>(scratch_) + 2 * args_.classes);
  }

  float scale() const { return static_cast<float>(Constants<double>::kLog2E / args_.temperature); }

  bool shares_p() const {
    const int inner = args_.rows.dims - 1;
    return inner >= 0 && args_.rows.strides[0][inner] == 0 && args_.rows.sizes[inner] > 1;
  }

  void exact(int64_t row) const {
    const Cursor<2> at(args_.rows, row);
    ExactRow result =
        exact_row(packed_p(at.offset(0)), packed_q(at.offset(1)), args_.classes, args_.temperature);
    if (args_.classes == 1 && result.kl == result.kl) result.kl = 0;
    static_cast<Result*>(args_.kl)[row] = static_cast<Result>(result.kl);
    if (args_.lse_p == nullptr) return;
    const Result centre = static_cast<Result>(result.lse_difference);
    static_cast<Result*>(args_.lse_p)[row] = static_cast<Result>(result.lse_p);
    static_cast<Result*>(args_.centre)[row] = centre;
    static_cast<Result*>(args_.shift)[row] = static_cast<Result>(centre - result.lse_difference);
  }

  // ------------------------------------------------------------------------------------------------
  // short rows

  // Registers of rows that are worked on side by side.
  static constexpr int kGroups = 2;

  struct Stage {
    alignas(64) float p[kLanes<float> * kMaxLaneClasses], q[kLanes<float> * kMaxLaneClasses];
  };

  // Where load_columns may read an operand in place: it reads up to the start of the row that
  // follows.
  class InPlace {
   public:
    InPlace(const KlDivForward& args, int operand) {
      const auto& [dims, sizes, strides] = args.rows;
      if (!__is_same(Stored, float)) return;
      if ((operand == 0 ? args.p_class_stride : args.q_class_stride) != 1) return;
      const int64_t beyond = padded_classes<float>(args.classes) - args.classes;
      if (dims == 0 || beyond > strides[operand][dims - 1]) return;
      allowed_ = true;
      padded_ = beyond > 0;
      for (int dim = dims - 1; dim >= 0; --dim) {
        evenly_ &= sizes[dim] == 1 || strides[operand][dim] == count_ * strides[operand][dims - 1];
        count_ *= sizes[dim];
      }
    }

    // Of the next `rows` rows, which are evenly spaced, as many as that, in groups of `group`.
    int64_t of(const Cursor<2>& at, int64_t row, int64_t rows, int64_t group) const {
      if (!allowed_) return 0;
      const int64_t followed = evenly_ ? count_ - row - 1 : at.run() - 1;
      return (padded_ ? least(rows, followed) : rows) / group * group;
    }

   private:
    bool allowed_ = false, padded_ = false;
    bool evenly_ = true;  // all rows, from one dimension to the next
    int64_t count_ = 1;
  };

  LaneRows<float> placed(int operand, const Cursor<2>& at) const {
    return {static_cast<const float*>(operand == 0 ? args_.p : args_.q) + at.offset(operand),
            at.stride(operand)};
  }

  LaneRows<float> staged(int operand, Cursor<2> at, int64_t count, float* stage) const {
    const int64_t classes = args_.classes, pitch = padded_classes<float>(classes);
    const int64_t stride = operand == 0 ? args_.p_class_stride : args_.q_class_stride;
    memset(stage, 0, sizeof(float) * kLanes<float> * pitch);
    for (int64_t i = 0; i < count; ++i) {
      const Stored* from = operand == 0 ? p(at.offset(0)) : q(at.offset(1));
      Stored row[kMaxLaneClasses];
      if (stride != 1) {
        copy_row(row, from, stride, classes);
        from = row;
      }
      for (int64_t c = 0; c < classes; c += kLanes<float>) {
        const int64_t left = classes - c < kLanes<float> ? classes - c : kLanes<float>;
        store_first(stage + i * pitch + c, load_first(from + c, left), left);
      }
      if (i + 1 < count) at.advance(1);
    }
    return {stage, pitch};
  }

  template <bool kScaled>
  void lanes(int64_t begin, int64_t end) const {
    constexpr int kRows = kLanes<float>, kMany = kGroups * kRows;
    const int64_t classes = args_.classes;
    const bool shared = shares_p() && __is_same(Stored, float) && args_.p_class_stride == 1;
    Stage stage;
    LaneWeights<1> one;
    LaneWeights<kGroups> many;
    const Stored* weighed = nullptr;
    const InPlace p_in_place(args_, 0), q_in_place(args_, 1);
    Cursor<2> at(args_.rows, begin);

    for (int64_t row = begin; row < end;) {
      const int64_t run = least(at.run(), end - row);
      int64_t count = q_in_place.of(at, row, run, kMany);
      LaneRows<float> of_q = placed(1, at);
      if (shared && run >= kRows) {
        if (p(at.offset(0)) != weighed) {
          weighed = p(at.offset(0));
          load_shared_p(static_cast<const float*>(args_.p) + at.offset(0), classes, scale(), one);
        }
        if (count > 0) {
          for (int64_t i = 0; i < count; i += kMany, of_q.first += kMany * of_q.stride)
            finish<kScaled, kGroups>(one, of_q, row + i, kMany);
        } else {
          count = kRows;
          if (q_in_place.of(at, row, kRows, kRows) == 0) of_q = staged(1, at, kRows, stage.q);
          finish<kScaled, 1>(one, of_q, row, kRows);
        }
      } else if ((count = least(count, p_in_place.of(at, row, run, kMany))) > 0) {
        LaneRows<float> of_p = placed(0, at);
        for (int64_t i = 0; i < count; i += kMany) {
          load_p(of_p, classes, scale(), many);
          finish<kScaled, kGroups>(many, of_q, row + i, kMany);
          of_p.first += kMany * of_p.stride;
          of_q.first += kMany * of_q.stride;
        }
      } else {
        count = least(end - row, kRows);
        load_p(staged(0, at, count, stage.p), classes, scale(), one);
        weighed = nullptr;
        finish<kScaled, 1>(one, staged(1, at, count, stage.q), row, count);
      }
      row += count;
      if (row < end) at.advance(count);
    }
  }

  template <bool kScaled, int N, int kOfP>
  void finish(const LaneWeights<kOfP>& side, LaneRows<float> q, int64_t row, int64_t count) const {
    Mask<float, N> trusted;
    const float inverse = static_cast<float>(1 / args_.temperature);
    const auto sums = sum_lanes<kScaled, N>(side, q, args_.classes, inverse, scale(), trusted);
    finish_rows(sums, args_, row, count);
    if (any(!trusted)) {
      for (int i = 0; i < count; ++i) {
        if (!trusted[i]) exact(row + i);
      }
    }
  }

  // -------------------------------------------------------------------------------------------------
  // long rows

  // Sums of as many rows as a register has lanes, so that their logarithms are taken together.
  struct Tile {
    float top[kLanes<float>], centre[kLanes<float>], weight[kLanes<float>], v[kLanes<float>],
        phi[kLanes<float>];
    bool exact[kLanes<float>];
  };

  template <bool kScaled>
  void rows(int64_t begin, int64_t end) const {
    constexpr int kRows = kLanes<float>;
    const bool shared = shares_p();
    const Stored* weighed = nullptr;
    float top = 0;
    Cursor<2> at(args_.rows, begin);
    Tile tile = {};
    for (int64_t row = begin; row < end; ++row) {
      const Stored *p = packed_p(at.offset(0)), *q = packed_q(at.offset(1));
      RowSums sums;
      bool summed;
      if (shared) {
        if (weighed != this->p(at.offset(0))) {
          weighed = this->p(at.offset(0));
          top = weigh(p);
        }
        summed = sum_row<kScaled, true>(p, q, weights(), top, sums);
      } else {
        summed = sum_row<kScaled, false>(p, q, nullptr, 0, sums);
      }
      const int64_t lane = (row - begin) % kRows;
      tile.exact[lane] = !summed;
      tile.top[lane] = sums.top;
      tile.centre[lane] = sums.centre;
      tile.weight[lane] = static_cast<float>(sums.weight);
      tile.v[lane] = static_cast<float>(sums.v);
      tile.phi[lane] = static_cast<float>(sums.phi);
      if (lane == kRows - 1 || row == end - 1) flush(tile, row - lane, lane + 1);
      if (row + 1 < end) at.advance(1);
    }
  }

  // False if the row needs the exact form.
  template <bool kScaled, bool kWeighed>
  bool sum_row(const Stored* p, const Stored* q, const float* weights, float top,
               RowSums& sums) const {
    const int64_t classes = args_.classes;
    const double temperature = args_.temperature;
    auto outcome = LongRow<Stored, kScaled, kWeighed, false>(p, q, weights, classes, temperature)
                       .sum(top, sums);
    if (outcome == RowOutcome::kNeedsRemainders) {
      outcome = LongRow<Stored, kScaled, kWeighed, true>(p, q, weights, classes, temperature)
                    .sum(top, sums);
    }
    return outcome == RowOutcome::kSummed;
  }

  void flush(const Tile& tile, int64_t row, int64_t count) const {
    const CentredSums<1> sums{load(tile.top), load(tile.centre), load(tile.weight), load(tile.v),
                              load(tile.phi)};
    finish_rows(sums, args_, row, count);
    for (int64_t i = 0; i < count; ++i) {
      if (tile.exact[i]) exact(row + i);
    }
  }

  // Fills weights() for one row of p; returns its largest logit.
  float weigh(const Stored* p) const {
    constexpr int kStep = kLanes<float>;
    const int64_t classes = args_.classes;
    auto largest = load(p);
    for (int64_t i = kStep; i + kStep <= classes; i += kStep) largest = max(largest, load(p + i));
    float top = maximum(largest);
    const int64_t whole = classes / kStep * kStep;
    const auto rest = load_first(p + whole, classes - whole);
    for (int64_t i = whole; i < classes; ++i) top = rest[i - whole] > top ? rest[i - whole] : top;
    const Weights<float, 1> weigh(top, scale());
    for (int64_t i = 0; i < whole; i += kStep) store(weights() + i, weigh(load(p + i)));
    store_first(weights() + whole, weigh(rest), classes - whole);
    return top;
  }

  const KlDivForward& args_;
  void* scratch_;
};

template <class Stored>
void forward(const KlDivForward& args, int64_t begin, int64_t end, void* scratch) {
  Forward<Stored>(args, scratch).run(begin, end);
}

}  // namespace

extern const KlDivForwardKernels kl_div_forward;
const KlDivForwardKernels kl_div_forward = {
    {&forward<float>, &forward<double>, &forward<Half>, &forward<BFloat16>}};

}  // namespace fastmem::cpu::FASTMEM_ISA
