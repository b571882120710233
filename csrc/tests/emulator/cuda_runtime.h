// A stand-in for the CUDA headers that runs fastmem's kernels on the CPU, for tests where there is
// no GPU. The .cu files compile against it as ordinary C++.
//
// Blocks run one after another. The threads of a block are fibers of one CPU thread; each runs
// until it waits for others, at __syncthreads or a shuffle, and so a missing barrier or a shuffle
// that not all lanes of its mask reach shows as a wrong value or as a deadlock, which raises an
// exception. FASTMEM_EMULATOR_ORDER=reverse runs the highest thread first. Time, caches and the
// memory model of a GPU are not emulated; nor are overlapping blocks.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one at a time

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace fastmem_emulator {

struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
};

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool started, done;
};

class Block {
 public:
  void run(dim3 threads, const std::function<void()>& body) {
    const int count = static_cast<int>(threads.x * threads.y * threads.z);
    if (count % 32 != 0 || count > 1024) throw std::logic_error("not whole warps, or too many");
    body_ = &body;
    blockDim = threads;
    finished_ = 0;
    barriers_.clear();
    slots_.assign(count, 0);
    while (static_cast<int>(fibers_.size()) < count) {
      fibers_.emplace_back();
      fibers_.back().stack = std::make_unique<char[]>(kStackBytes);
    }
    for (int i = 0; i < count; ++i) prepare(fibers_[i]);
    const char* order = std::getenv("FASTMEM_EMULATOR_ORDER");
    const bool reverse = order != nullptr && std::string_view(order) == "reverse";
    count_ = count;
    while (finished_ < count) {
      moved_ = false;
      for (int i = 0; i < count; ++i) resume(reverse ? count - 1 - i : i);
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      if (!moved_) throw std::logic_error("the threads of a block wait for each other");
    }
  }

  void wait_for_block() {
    wait(barriers_[{-1, 0}], [this] { return count_ - finished_; });
  }

  // The value of lane `source(lane)` among the lanes of the mask.
  template <typename V, typename Source>
  V exchange(unsigned mask, V value, Source source) {
    static_assert(sizeof(V) <= 8);
    const int lane = current_ % 32, warp = current_ / 32;
    if ((mask >> lane & 1) == 0) throw std::logic_error("a lane shuffles outside its mask");
    Barrier& barrier = barriers_[{warp, mask}];
    const auto lanes = [mask] { return std::popcount(mask); };
    std::memcpy(&slots_[current_], &value, sizeof(V));
    wait(barrier, lanes);
    const int from = source(lane);
    if (from < 32) {
      if ((mask >> from & 1) == 0) throw std::logic_error("a lane reads outside its mask");
      std::memcpy(&value, &slots_[warp * 32 + from], sizeof(V));
    }
    wait(barrier, lanes);
    return value;
  }

 private:
  static constexpr size_t kStackBytes = 256 * 1024;

  void prepare(Fiber& fiber) {
    fiber.started = fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 2,
                static_cast<unsigned>(self), static_cast<unsigned>(self >> 32));
  }

  static void enter(unsigned low, unsigned high) {
    auto& block = *reinterpret_cast<Block*>(uintptr_t{high} << 32 | low);
    try {
      (*block.body_)();
    } catch (...) {
      block.failure_ = std::current_exception();
    }
    block.fibers_[block.current_].done = true;
    ++block.finished_;
    block.moved_ = true;
    block.yield();
  }

  void resume(int index) {
    if (fibers_[index].done || failure_) return;
    current_ = index;
    threadIdx = dim3(index % blockDim.x, index / blockDim.x % blockDim.y,
                     index / (blockDim.x * blockDim.y));
    Fiber& fiber = fibers_[index];
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }

  // By jumps, for swapcontext makes two system calls.
  void yield() {
    if (_setjmp(fibers_[current_].place) == 0) _longjmp(scheduler_, 1);
  }

  // `expected` may fall while threads wait: those that have returned are not waited for.
  template <typename Expected>
  void wait(Barrier& barrier, Expected expected) {
    const uint64_t generation = barrier.generation;
    ++barrier.arrived;
    while (barrier.generation == generation) {
      if (barrier.arrived >= expected()) {
        barrier.arrived = 0;
        ++barrier.generation;
        moved_ = true;
        return;
      }
      yield();
    }
  }

  const std::function<void()>* body_ = nullptr;
  std::vector<Fiber> fibers_;
  std::map<std::pair<int, unsigned>, Barrier> barriers_;
  std::vector<uint64_t> slots_;
  jmp_buf scheduler_;
  std::exception_ptr failure_;
  int count_ = 0, current_ = 0, finished_ = 0;
  bool moved_ = false;
};

inline Block block;
inline std::vector<uint4> shared_memory;

inline void* dynamic_shared() { return shared_memory.data(); }

inline void run(unsigned blocks, dim3 threads, size_t shared_bytes,
                const std::function<void()>& body) {
  static std::mutex one_launch;
  const std::lock_guard lock(one_launch);
  if (shared_bytes > 48 * 1024) throw std::logic_error("more shared memory than a block gets");
  gridDim = dim3(blocks);
  for (unsigned b = 0; b < blocks; ++b) {
    shared_memory.assign(shared_bytes / sizeof(uint4) + 1, uint4{~0u, ~0u, ~0u, ~0u});
    blockIdx = dim3(b);
    block.run(threads, body);
  }
}

}  // namespace fastmem_emulator

inline void __syncthreads() { fastmem_emulator::block.wait_for_block(); }

template <typename V>
V __shfl_xor_sync(unsigned mask, V value, int step) {
  return fastmem_emulator::block.exchange(mask, value, [step](int lane) { return lane ^ step; });
}

template <typename V>
V __shfl_down_sync(unsigned mask, V value, int step) {
  return fastmem_emulator::block.exchange(mask, value, [step](int lane) { return lane + step; });
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

inline int min(int a, int b) { return std::min(a, b); }

// One device with few multiprocessors, on which nothing fails.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaSuccess"; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 2, cudaSuccess;
}
