// What the kernels of kkt_residual are handed; see fastmem/ops/kkt_residual.py for the definition.
#pragma once

#include <cstdint>

namespace fastmem::cpu {

// c = alpha a b + beta c. Strides count elements.
struct KktProduct {
  const void* a;  // [rows][depth], rows `a_row` apart
  int64_t a_row;
  const void* b;  // [depth][columns], or panels that pack() wrote if b_depth is 0
  int64_t b_depth, b_column;
  void* c;  // [rows][columns], rows `c_row` apart; not read if beta is 0
  int64_t c_row;
  int64_t rows, depth, columns;
  double alpha, beta;
  bool lower;  // only what is on or below the diagonal matters, the rest may be left as it is
};

// What follows the product z = a w^T of a hidden layer, for rows of `columns` elements without
// gaps.
struct KktActivate {
  void* z;           // gets the bias
  const void* bias;  // [columns], or null
  const double* alpha;
  int64_t alpha_rows;  // rows that share an alpha
  void* a;             // relu(z)
  void* s;             // sigmoid(alpha z)
  int64_t columns;
};

// What follows the product h = (a a^T + 1) d, half of a layer's residual seen from its outputs.
struct KktRise {
  const void* h;
  const void* z;
  const void* s;
  const void* d;
  const double* alpha;
  int64_t alpha_rows;
  void* v;       // holds v w^T of the layer below if `onward`, gets s u with u = 2 (h - z) + that
  void* curve;   // gets alpha (1 - s) d u - 2 d
  double* loss;  // of each row, gets the sum of d (h - 2 z)
  int64_t columns;
  bool onward;
};

// For one element type.
struct KktKernel {
  int64_t panel;          // columns of a panel
  int64_t scratch_bytes;  // of one call of product
  // Panels [first, last) of the product.
  void (*product)(const KktProduct& call, int64_t first, int64_t last, void* scratch);
  // Panels [first, last) of b as product reads them fastest, `depth` rows each.
  void (*pack)(const KktProduct& call, int64_t first, int64_t last, void* panels);
  void (*activate)(const KktActivate& call, int64_t begin, int64_t end);
  void (*rise)(const KktRise& call, int64_t begin, int64_t end);
};

// 0: float, 1: double.
struct KktKernels {
  KktKernel of[2];
};

}  // namespace fastmem::cpu
