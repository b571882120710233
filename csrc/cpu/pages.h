// Fewer and larger pages for results that the system has yet to find memory for.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace fastmem::cpu {

// Allocators take blocks of this size from the system anew each time and hand them straight back,
// so that writing to one begins with a fault for every page. (glibc: DEFAULT_MMAP_THRESHOLD_MAX.)
inline constexpr int64_t kFreshBytes = int64_t{32} << 20;

// Call it before `memory` is written. With pages of 2 MiB there are 500 times fewer faults; where
// the system has none to give, nothing changes.
inline void ask_for_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  if (memory == nullptr || bytes < kFreshBytes) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (address + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kLargePage * kLargePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fastmem::cpu
