// What the kernels of kl_div get. Strides count elements.
#pragma once

#include "cpu/rows.h"

namespace fastmem::cpu {

struct KlDivForward {
  const void *p, *q;
  RowMap<2> rows;  // of p and q
  int64_t classes, p_class_stride, q_class_stride;
  double temperature;
  // float64 for float64 logits, else float32; one element for each row, contiguous.
  void *kl, *lse_p, *centre, *shift;
};

// By DType. Rows [begin, end); `scratch` is needed where kl_div_forward_scratch() asks for bytes.
struct KlDivForwardKernels {
  void (*run[4])(const KlDivForward& args, int64_t begin, int64_t end, void* scratch);
};

}  // namespace fastmem::cpu
