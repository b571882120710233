// Sums of what models said about records, over those that trained on a record and over the others.
#pragma once

#include <cstdint>

namespace fastmem::cpu {

// Of one group, an element for each record. `high` + `low` is the sum in twice the precision of a
// double; `squares` are about `centre`, which is the mean up to rounding and lies at the group's
// first value where all are equal.
struct GroupSums {
  double *count, *high, *low, *magnitude, *centre, *squares;
};

// said[model * pitch + record]; kept, laid out alike, is 1 for models of the first group, else 0.
// `pitch` records, a multiple of kGroupLanes, all of which may be read and written.
struct GroupSumsCall {
  const double* said;
  const uint8_t* kept;
  int64_t models, pitch;
  GroupSums groups[2];
};

inline constexpr int64_t kGroupLanes = 8;

struct GroupSumsKernels {
  void (*sum)(const GroupSumsCall& call);
};

}  // namespace fastmem::cpu
