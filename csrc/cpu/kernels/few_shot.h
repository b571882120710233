// What the kernels of few-shot episodes are handed; see fastmem/ops/nearest_shares.py and
// fastmem/ops/label_propagation.py for the definitions. All arrays are without gaps.
#pragma once

#include <cstdint>

namespace fastmem::cpu {

struct NearestShares {
  const double* records;   // [records][width]
  const int64_t* support;  // [episodes][known], numbers of records
  const bool* members;     // [episodes][known]
  const int64_t* asked;    // [episodes][count]
  const double* centre;    // [width], or null
  double* shares;          // [episodes][count][sizes]
  int64_t known, count, width, sizes;
  bool on_support;  // the centre is the mean of an episode's support
  bool normalise;
};

struct LabelPropagation {
  const double* distances;  // [episodes][count][prototypes]
  const double* apart;      // [episodes][count][count]
  const bool* members;      // [episodes][prototypes]
  const double* lam;        // [episodes][grid]
  const int64_t* k;         // [episodes][grid]
  double* log_odds;         // [episodes][grid][count]
  int64_t count, prototypes, grid;
};

// Each works on episodes [begin, end), in memory of its own of this many bytes, aligned to 64.
struct FewShotKernels {
  int64_t (*nearest_bytes)(const NearestShares& call);
  void (*nearest)(const NearestShares& call, int64_t begin, int64_t end, void* memory);
  int64_t (*propagation_bytes)(const LabelPropagation& call);
  void (*propagation)(const LabelPropagation& call, int64_t begin, int64_t end, void* memory);
};

}  // namespace fastmem::cpu
