// Kernels with known faults: does the emulator show them?
#include <cuda_runtime.h>

#include <cstdio>

namespace {

constexpr int kThreads = 64;
int result;

// Thread 0 adds up what the others have left in shared memory; without the barrier too early.
void add_up(bool with_barrier) {
  __shared__ int values[kThreads];
  if (threadIdx.x == 0) {
    for (int& value : values) value = 0;
  }
  __syncthreads();
  values[threadIdx.x] = threadIdx.x;
  if (with_barrier) __syncthreads();
  if (threadIdx.x != 0) return;
  result = 0;
  for (const int value : values) result += value;
}

// All lanes of the mask must shuffle; here those of the second half leave it.
void shuffle_with_half_a_warp() {
  if (threadIdx.x % 32 < 16) __shfl_xor_sync(0xffffffffu, 1, 1);
}

void shuffle_outside_the_mask() { __shfl_xor_sync(0x0000ffffu, 1, 1); }

void sum_by_shuffles() {
  int value = threadIdx.x;
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (threadIdx.x == 33) result = value;
}

}  // namespace

// Runs a check; gives its result, or -1 with the error's text.
extern "C" int run_check(int number, char* error, int length) {
  try {
    fastmem_emulator::run(1, dim3(kThreads), 0, [number] {
      switch (number) {
        case 0:
          return add_up(true);
        case 1:
          return add_up(false);
        case 2:
          return shuffle_with_half_a_warp();
        case 3:
          return shuffle_outside_the_mask();
        default:
          return sum_by_shuffles();
      }
    });
  } catch (const std::exception& failure) {
    std::snprintf(error, length, "%s", failure.what());
    return -1;
  }
  return result;
}
