// What the kernels of logit_stats get. Strides count elements.
#pragma once

#include "cpu/rows.h"

namespace fastmem::cpu {

enum LogitStat { kMargin, kLoss, kHinge, kMaxProb, kEntropy, kLogitStats };

struct LogitStatsForward {
  const void* logits;
  const int64_t* labels;
  RowMap<2> rows;  // of logits and labels
  int64_t classes, class_stride;
  // float64 for float64 logits, else float32; an element for each row, contiguous. Without kLoss
  // only the margin is wanted.
  void* stats[kLogitStats];
};

struct LogitStatsBackward {
  const void* logits;
  const int64_t* labels;
  RowMap<2> rows;
  int64_t classes, class_stride;
  const void* grads[kLogitStats];  // as the stats; null where a statistic was not used
  void* gradient;                  // contiguous, in the type of the logits
};

// By DType. Rows [begin, end); `scratch` holds classes elements of what is computed with.
struct LogitStatsKernels {
  void (*forward[4])(const LogitStatsForward& args, int64_t begin, int64_t end, void* scratch);
  void (*backward[4])(const LogitStatsBackward& args, int64_t begin, int64_t end, void* scratch);
};

}  // namespace fastmem::cpu
