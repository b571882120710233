// fastmem._cpu: operators on raw pointers, sizes and strides. It knows nothing of torch; who calls
// it checks arguments and owns memory.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

namespace fastmem::cpu {
void bind_boxed_step(pybind11::module_& module);
void bind_conv_pool(pybind11::module_& module);
void bind_few_shot(pybind11::module_& module);
void bind_kkt(pybind11::module_& module);
void bind_kl_div(pybind11::module_& module);
void bind_layer_grad_stats(pybind11::module_& module);
void bind_lira_moments(pybind11::module_& module);
void bind_logit_stats(pybind11::module_& module);
void bind_mlp_sgd(pybind11::module_& module);
void bind_relu_max_pool(pybind11::module_& module);
void bind_rmia(pybind11::module_& module);
void bind_weight_importance(pybind11::module_& module);
}  // namespace fastmem::cpu

PYBIND11_MODULE(_cpu, module) {
  using namespace fastmem::cpu;
  module.doc() = "CPU kernels of fastmem's operators.";
  bind_isa(module);
  bind_boxed_step(module);
  bind_conv_pool(module);
  bind_few_shot(module);
  bind_kkt(module);
  bind_kl_div(module);
  bind_layer_grad_stats(module);
  bind_lira_moments(module);
  bind_logit_stats(module);
  bind_mlp_sgd(module);
  bind_relu_max_pool(module);
  bind_rmia(module);
  bind_weight_importance(module);
}
