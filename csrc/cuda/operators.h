// The operators of fastmem._cuda as plain C++: what the bindings call and the .cu files define. All
// memory is the caller's, on the given device; a call only launches, on the given stream.
#pragma once

#include <cstdint>
#include <vector>

#include "common/dtype.h"

namespace fastmem::cuda {

inline constexpr int kMaxLeadingDims = 6;
inline constexpr int64_t kMaxClasses = int64_t{1} << 30;

// Whether the kernels were compiled for the CPU, as tests do where there is no GPU.
bool is_emulated();

// Number of usable devices: 0 for whatever reason there is none (no driver, an old one, no GPU).
int device_count();

struct Target {
  int device;
  void* stream;
  DType dtype;
};

// Logits [*sizes, classes] of any strides (in elements); broadcast dimensions have stride 0.
struct Logits {
  const void* data;
  std::vector<int64_t> strides;
  int64_t class_stride;
};

// Longer rows may be cut into segments, so that few rows still fill the device. Their sums meet in
// a workspace of rows * row_segments entries, which forward passes do without for one segment.
inline constexpr int64_t kLongRow = 1024;
int64_t row_segments(int device, int64_t rows, int64_t classes);

// Numbers of the accumulation dtype in an entry of the workspace.
inline constexpr int kKlSums = 5;
inline constexpr int kLogitSums = 4;

struct KlForward {
  Target target;
  std::vector<int64_t> sizes;
  int64_t classes;
  Logits p, q;
  double temperature;
  void *kl, *lse_p, *centre, *shift;  // [*sizes] of the accumulation dtype
  void* workspace;
  int64_t segments;
};
void kl_div_forward(const KlForward& call);

// Saved row values of the forward pass and the incoming gradient, [*sizes] contiguous.
struct KlRows {
  const void *grad, *kl, *lse_p, *centre, *shift;
};

struct KlBackward {
  Target target;
  std::vector<int64_t> sizes;
  int64_t classes;
  Logits p, q;
  double temperature;
  KlRows rows;
  void *dp, *dq;  // [*sizes, classes] contiguous, or null if not wanted
};
void kl_div_backward(const KlBackward& call);

// The gradient of an operand that broadcasts: its rows are `kept`, and for each of them the rows
// over `summed` add up. Strides of p, q and row values cover the dimensions kept, then summed.
struct KlBackwardSummed {
  Target target;
  std::vector<int64_t> kept, summed;
  int64_t classes;
  Logits p, q;
  std::vector<int64_t> row_strides;  // of the row values, and in rows of `other_gradient`
  double temperature;
  KlRows rows;
  bool sum_p;            // which operand's gradient is summed
  void* gradient;        // [*kept, classes]
  void* other_gradient;  // of the other operand, written on the way, or null
  void* workspace;       // [segments, *kept, classes] of the accumulation dtype if segments > 1
  int64_t segments;
};
void kl_div_backward_summed(const KlBackwardSummed& call);
int64_t sum_segments(int device, int64_t kept_rows, int64_t summed_rows, int64_t classes);

struct Labels {
  const int64_t* data;  // one per row; a label out of range gives NaN
  std::vector<int64_t> strides;
};

struct LogitForward {
  Target target;
  std::vector<int64_t> sizes;
  int64_t classes;
  Logits logits;
  Labels labels;
  // [*sizes] of the accumulation dtype; all but the margin may be null.
  void *margin, *loss, *hinge, *max_prob, *entropy;
  void* workspace;
  int64_t segments;
};
void logit_stats_forward(const LogitForward& call);

struct LogitBackward {
  Target target;
  std::vector<int64_t> sizes;
  int64_t classes;
  Logits logits;
  Labels labels;
  // [*sizes] contiguous, of the accumulation dtype; null for a statistic that is not used.
  const void *margin, *loss, *hinge, *max_prob, *entropy;
  void* dlogits;  // [*sizes, classes] contiguous
  void* workspace;
  int64_t segments;
};
void logit_stats_backward(const LogitBackward& call);

}  // namespace fastmem::cuda
