// What the kernels of kl_div get. Strides count elements.
#pragma once

#include "cpu/rows.h"

namespace fastmem::cpu {

struct KlDivForward {
  const void *p, *q;
  RowMap<2> rows;  // of p and q
  int64_t classes, p_class_stride, q_class_stride;
  double temperature;
  // float64 for float64 logits, else float32; one element for each row, contiguous. Without lse_p
  // only kl is wanted.
  void *kl, *lse_p, *centre, *shift;
};

// By DType. Rows [begin, end); `scratch` is needed where kl_div_forward_scratch() asks for bytes.
struct KlDivForwardKernels {
  void (*run[4])(const KlDivForward& args, int64_t begin, int64_t end, void* scratch);
};

// Gradients of p, of q, or of both. An operand that is shared along some dimensions gets the sum
// over them: those are the `summed` dimensions, the others the `kept` ones. At most one of the two
// gradients is a sum.
struct KlDivBackward {
  enum Operand { kP, kQ, kGrad, kSaved, kDp, kDq, kOperands };

  const void *p, *q, *grad;
  const void *kl, *lse_p, *centre, *shift;  // as saved by the forward pass, by row
  void *dp, *dq;                   // contiguous, in the type of the logits; null if not wanted
  RowMap<kOperands> kept, summed;  // kSaved counts rows, the others elements
  int64_t classes, p_class_stride, q_class_stride;
  double temperature;
  int summed_operand;  // kDp, kDq, or -1
  // The summed rows are cut into so many chunks, and with more than one the sums of each go to
  // partial [kept rows, chunks, classes].
  int64_t chunks;
  double* partial;
};

// By DType. Tasks [begin, end) of kept rows times chunks.
struct KlDivBackwardKernels {
  void (*run[4])(const KlDivBackward& args, int64_t begin, int64_t end, void* scratch);
  // Adds up partial for kept rows [begin, end).
  void (*add_up[4])(const KlDivBackward& args, int64_t begin, int64_t end);
};

}  // namespace fastmem::cpu
