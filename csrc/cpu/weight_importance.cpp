// Weight importance over many tensors in one call, and the exact selection of the most important
// ones.
#include "cpu/kernels/weight_importance.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(void accumulate_importance(const ImportancePiece& piece, DType dtype,
                                                         Importance kind, double scale,
                                                         bool overwrite))

// Appends the bits and the index of every score of at least `lower` (as bits) to the two arrays,
// which hold `count` elements; returns how many, or -1 where a score is negative or NaN.
FASTMEM_DECLARE_FOR_EVERY_ISA(int64_t collect_candidates(const float* scores, int64_t count,
                                                         uint32_t lower, uint32_t* bits,
                                                         uint16_t* indices))

namespace {

// Small enough to stay in a core's cache between the threads' turns, large enough to hide a turn's
// cost.
constexpr int64_t kAccumulatePiece = 1 << 16;

using Addresses = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

void weight_importance(const Addresses& scores, const Addresses& weights,
                       const Addresses& gradients, const Addresses& counts, int dtype_code,
                       int kind, double scale, bool overwrite, int threads) {
  const DType dtype = static_cast<DType>(dtype_code);
  const int64_t size = item_size(dtype), score_size = dtype == DType::kFloat64 ? 8 : 4;
  std::vector<ImportancePiece> pieces;
  for (py::ssize_t tensor = 0; tensor < counts.size(); ++tensor) {
    for (int64_t begin = 0; begin < counts.at(tensor); begin += kAccumulatePiece) {
      pieces.push_back({reinterpret_cast<char*>(scores.at(tensor)) + begin * score_size,
                        reinterpret_cast<const char*>(weights.at(tensor)) + begin * size,
                        reinterpret_cast<const char*>(gradients.at(tensor)) + begin * size,
                        std::min(kAccumulatePiece, counts.at(tensor) - begin)});
    }
  }
  const auto accumulate = FASTMEM_FOR_CURRENT_ISA(accumulate_importance);
  py::gil_scoped_release release;
  parallel_rows(static_cast<int64_t>(pieces.size()), kAccumulatePiece, 1, threads,
                [&](int64_t begin, int64_t end) {
                  for (int64_t i = begin; i < end; ++i)
                    accumulate(pieces[i], dtype, static_cast<Importance>(kind), scale, overwrite);
                });
}

struct ScorePiece {
  const float* scores;
  uint8_t* mask;
  int64_t count;
};

struct Candidates {
  std::vector<uint32_t> bits;
  std::vector<uint16_t> indices;
};

// A bound (as bits) that at least k of the scores reach with near certainty, and not many more: an
// order statistic of a sample at regular distances.
uint32_t sampled_bound(const std::vector<ScorePiece>& pieces, int64_t total, int64_t k) {
  constexpr int64_t kSample = 1 << 18;
  if (total <= kSample) return 0;
  std::vector<float> sample;
  sample.reserve(kSample + pieces.size());
  const int64_t stride = total / kSample;
  int64_t position = 0;
  for (const ScorePiece& piece : pieces) {
    for (; position < piece.count; position += stride) sample.push_back(piece.scores[position]);
    position -= piece.count;
  }
  const double expected =
      static_cast<double>(k) / static_cast<double>(total) * static_cast<double>(sample.size());
  const int64_t rank = static_cast<int64_t>(expected + 6 * std::sqrt(expected) + 16);
  if (rank >= static_cast<int64_t>(sample.size())) return 0;
  std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), std::greater<>());
  const float bound = sample[rank] + 0.0f;
  return bound > 0 ? std::bit_cast<uint32_t>(bound)
                   : 0;  // a negative or NaN is found by the full pass
}

bool collect(const std::vector<ScorePiece>& pieces, uint32_t lower, int threads,
             std::vector<Candidates>& found) {
  std::atomic<bool> valid{true};
  const auto collect_piece = FASTMEM_FOR_CURRENT_ISA(collect_candidates);
  parallel_rows(static_cast<int64_t>(pieces.size()), kSelectionPiece, 1, threads,
                [&](int64_t begin, int64_t end) {
                  // One place more than a piece has: the loop writes before it counts.
                  const auto bits = std::make_unique<uint32_t[]>(kSelectionPiece + 1);
                  const auto indices = std::make_unique<uint16_t[]>(kSelectionPiece + 1);
                  for (int64_t i = begin; i < end; ++i) {
                    const int64_t count = collect_piece(pieces[i].scores, pieces[i].count, lower,
                                                        bits.get(), indices.get());
                    if (count < 0) return valid.store(false);
                    found[i].bits.assign(bits.get(), bits.get() + count);
                    found[i].indices.assign(indices.get(), indices.get() + count);
                  }
                });
  return valid.load();
}

// The k-th largest of the candidates, by two histograms of 16 bits each, and how many are larger.
std::pair<uint32_t, int64_t> kth_largest(const std::vector<Candidates>& candidates, int64_t k) {
  std::vector<int64_t> histogram(1 << 16);
  uint32_t high = 0;
  int64_t larger = 0;
  for (const bool refining : {false, true}) {
    std::fill(histogram.begin(), histogram.end(), 0);
    for (const Candidates& piece : candidates)
      for (const uint32_t bits : piece.bits) {
        if (!refining) ++histogram[bits >> 16];
        if (refining && bits >> 16 == high) ++histogram[bits & 0xffff];
      }
    int bin = (1 << 16) - 1;
    while (larger + histogram[bin] < k) larger += histogram[bin--];
    if (refining) return {high << 16 | static_cast<uint32_t>(bin), larger};
    high = static_cast<uint32_t>(bin);
  }
  return {};
}

py::tuple top_k(const Addresses& scores, const Addresses& masks, const Addresses& counts, int64_t k,
                int threads) {
  std::vector<ScorePiece> pieces;
  int64_t total = 0;
  for (py::ssize_t tensor = 0; tensor < counts.size(); ++tensor) {
    const float* values = reinterpret_cast<const float*>(scores.at(tensor));
    uint8_t* mask = reinterpret_cast<uint8_t*>(masks.at(tensor));
    for (int64_t begin = 0; begin < counts.at(tensor); begin += kSelectionPiece) {
      pieces.push_back(
          {values + begin, mask + begin / 8, std::min(kSelectionPiece, counts.at(tensor) - begin)});
    }
    total += counts.at(tensor);
  }
  uint32_t threshold = 0;
  {
    py::gil_scoped_release release;
    std::vector<Candidates> candidates(pieces.size());
    const auto enough = [&] {
      int64_t count = 0;
      for (const Candidates& piece : candidates) count += static_cast<int64_t>(piece.bits.size());
      return count >= k;
    };
    bool valid = collect(pieces, sampled_bound(pieces, total, k), threads, candidates);
    if (valid && !enough()) valid = collect(pieces, 0, threads, candidates);
    if (valid) {
      const auto [kth, larger] = kth_largest(candidates, k);
      threshold = kth;
      // Of those equal to the threshold the first ones belong; each piece learns how many stand
      // before it.
      std::vector<int64_t> equal_before(pieces.size() + 1);
      for (size_t i = 0; i < pieces.size(); ++i)
        equal_before[i + 1] =
            equal_before[i] + std::count(candidates[i].bits.begin(), candidates[i].bits.end(), kth);
      const int64_t wanted = k - larger;
      parallel_rows(static_cast<int64_t>(pieces.size()), kSelectionPiece, 1, threads,
                    [&, kth = kth](int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) {
                        std::memset(pieces[i].mask, 0, (pieces[i].count + 7) / 8);
                        int64_t equal = equal_before[i];
                        for (size_t c = 0; c < candidates[i].bits.size(); ++c) {
                          const uint32_t bits = candidates[i].bits[c],
                                         index = candidates[i].indices[c];
                          if (bits > kth || (bits == kth && equal++ < wanted))
                            pieces[i].mask[index / 8] |= static_cast<uint8_t>(1u << (index % 8));
                        }
                      }
                    });
    }
    if (!valid) threshold = 0xffffffff;
  }
  return py::make_tuple(threshold != 0xffffffff, std::bit_cast<float>(threshold));
}

}  // namespace

void bind_weight_importance(py::module_& module) {
  module.def("weight_importance", &weight_importance, py::arg("scores"), py::arg("weights"),
             py::arg("gradients"), py::arg("counts"), py::arg("dtype"), py::arg("kind"),
             py::arg("scale"), py::arg("overwrite"), py::arg("threads"),
             "Add (or set) the importance of every weight of many contiguous tensors, by address.");
  module.def("top_k", &top_k, py::arg("scores"), py::arg("masks"), py::arg("counts"), py::arg("k"),
             py::arg("threads"),
             "Mark the k largest non-negative float32 scores of many contiguous tensors in packed "
             "masks, ties by lowest index; returns (valid, threshold).");
}

}  // namespace fastmem::cpu
