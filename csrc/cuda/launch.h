// What every launch needs: the right device, its errors as exceptions, the element type as a type.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/dtype.h"
#include "cuda/operators.h"
#include "cuda/rows.h"

namespace fastmem::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + " (" +
                           cudaGetErrorString(status) + ")");
}

// Makes a device current, and the former one again at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&former_), "reading the current device");
    if (former_ != device) check(cudaSetDevice(device), "choosing the device");
    changed_ = former_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(former_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = 0;
  bool changed_ = false;
};

template <typename T>
struct Tag {
  using type = T;
};

template <typename Body>
void for_dtype(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(Tag<float>{});
    case DType::kFloat64:
      return body(Tag<double>{});
    case DType::kFloat16:
      return body(Tag<Half>{});
    case DType::kBFloat16:
      return body(Tag<BFloat16>{});
  }
  throw std::invalid_argument("unknown dtype code");
}

struct Grid {
  unsigned blocks;
  dim3 threads;  // of a block
  cudaStream_t stream;
  size_t shared_bytes = 0;
};

template <typename... Parameters>
void run(const Grid& grid, void (*kernel)(Parameters...),
         std::type_identity_t<Parameters>... args) {
#if defined(__CUDACC__)
  kernel<<<grid.blocks, grid.threads, grid.shared_bytes, grid.stream>>>(args...);
#else
  fastmem_emulator::run(grid.blocks, grid.threads, grid.shared_bytes, [&] { kernel(args...); });
#endif
  check(cudaGetLastError(), "launching a kernel");
}

inline unsigned blocks_for(int64_t items, int64_t items_per_block) {
  const int64_t blocks = (items + items_per_block - 1) / items_per_block;
  if (blocks > 0x7fffffff) throw std::invalid_argument("too many rows for one launch");
  return static_cast<unsigned>(blocks);
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Whether every row of operand n starts at a multiple of 16 bytes and is contiguous.
template <typename T, int N>
bool is_packed(const Logits& logits, const RowMap<N>& map, int n) {
  if (logits.class_stride != 1 || !is_aligned(logits.data)) return false;
  for (int d = 0; d < map.ndim; ++d) {
    if (map.sizes[d] > 1 && map.strides[n][d] * sizeof(T) % 16 != 0) return false;
  }
  return true;
}

}  // namespace fastmem::cuda
