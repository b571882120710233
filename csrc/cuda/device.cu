// The devices, and how much of one a launch should try to fill.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/operators.h"

namespace fastmem::cuda {
namespace {

int processors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "reading the number of multiprocessors");
  return count;
}

}  // namespace

bool is_emulated() {
#if defined(__CUDACC__)
  return false;
#else
  return true;
#endif
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // or the next launch would report it
  return 0;
}

// 0 for rows that are summed at once. Eight blocks to a multiprocessor and several turns of them,
// so that the last turn matters little; no segment below 4096 classes, where a block's start would
// outweigh its work.
int64_t row_segments(int device, int64_t rows, int64_t classes) {
  if (classes <= kLongRow) return 0;
  if (rows == 0) return 1;
  const int64_t wanted = 32 * static_cast<int64_t>(processors(device)) / rows;
  return std::clamp<int64_t>(wanted, 1, std::clamp<int64_t>(classes / 4096, 1, 32));
}

// Enough threads to hide the memory's latency, where the rows kept do not have them by themselves.
int64_t sum_segments(int device, int64_t kept_rows, int64_t summed_rows, int64_t classes) {
  const int64_t threads = std::max<int64_t>(kept_rows * classes / 4, 1);
  const int64_t wanted = 2048 * static_cast<int64_t>(processors(device)) / threads;
  return std::clamp<int64_t>(wanted, 1, std::clamp<int64_t>(summed_rows / 16, 1, 256));
}

}  // namespace fastmem::cuda
