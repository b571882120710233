// Threads for the kernels: torch's own where they are free, others beside them where not, and no
// second OpenMP runtime.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastmem::cpu {

// Calls task(context, part) once for every part in [0, parts), on up to `threads` threads of which
// the caller is one, and returns when all are done. Any number of callers may run at once; a forked
// child starts threads of its own. The task must not throw. Which thread takes which part is left
// open, so a result may depend on the part alone.
void run_parts(int threads, int64_t parts, void (*task)(void* context, int64_t part),
               void* context);

// Below this many elements a call is not worth waking another thread for.
inline constexpr int64_t kSerialElements = 64 * 1024;

// Parts per thread: where other programs share the cores, a thread that lost its core holds up a
// small part only.
inline constexpr int64_t kPartsPerThread = 4;

// Splits [0, rows) at multiples of `granule` and calls body(begin, end) for every piece. Where the
// cuts fall depends on the number of threads: a kernel whose rows influence each other must do so
// within a granule only.
template <class Body>
void parallel_rows(int64_t rows, int64_t elements_per_row, int64_t granule, int threads,
                   Body&& body) {
  if (rows <= 0) return;
  const int64_t granules = (rows + granule - 1) / granule;
  int64_t parts = 1;
  if (threads > 1 && rows * elements_per_row >= kSerialElements) {
    parts = std::min(
        {granules, threads * kPartsPerThread, rows * elements_per_row / (kSerialElements / 8)});
  }
  if (parts <= 1) {
    body(int64_t{0}, rows);
    return;
  }
  struct Context {
    Body& body;
    int64_t rows, granule, granules, parts;
  } context{body, rows, granule, granules, parts};
  run_parts(
      threads, parts,
      [](void* opaque, int64_t part) {
        const Context& c = *static_cast<Context*>(opaque);
        const int64_t begin = c.granules * part / c.parts * c.granule;
        const int64_t end = c.granules * (part + 1) / c.parts * c.granule;
        c.body(begin, std::min(end, c.rows));
      },
      &context);
}

}  // namespace fastmem::cpu
