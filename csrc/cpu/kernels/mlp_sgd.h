// What the kernel of mlp_sgd is handed; see fastmem/ops/mlp_sgd.py for the definition.
#pragma once

#include <cstdint>

namespace fastmem::cpu {

// A linear layer and its momentum: weights [outputs][inputs] without gaps, biases [outputs].
struct MlpLayer {
  void* weight;
  void* bias;
  void* weight_speed;
  void* bias_speed;
  int64_t inputs;
  int64_t outputs;
};

struct MlpRule {
  double momentum;
  double weight_decay;
  double label_smoothing;
  bool nesterov;
};

// Consecutive steps of one perceptron. Step s takes the records rows[bounds[s]] up to
// rows[bounds[s + 1]].
struct MlpVisit {
  const MlpLayer* layers;
  int64_t depth;
  const void* x;  // records, `x_stride` elements apart
  int64_t x_stride;
  const int64_t* y;
  const int64_t* rows;
  const int64_t* bounds;
  const double* rates;
  double* losses;  // of each step, before it
  int64_t steps;
};

// For one element type: the bytes that a visit works in, and the visit itself.
struct MlpKernel {
  int64_t (*scratch_bytes)(const MlpVisit& visit);
  void (*run)(const MlpVisit& visit, const MlpRule& rule, void* scratch);
};

// 0: float, 1: double.
struct MlpKernels {
  MlpKernel of[2];
};

}  // namespace fastmem::cpu
