// Records side by side in a register: adding a 0 for every model of the other group is exact, so
// the sums are those of a loop over the group, in its order.
#include "cpu/kernels/group_sums.h"

#include "cpu/kernels/convert.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

using Records = Vec<double>;
using Members = Mask<double>;
constexpr int kStep = kLanes<double>;

FASTMEM_INLINE Records masked(Records x, Members members) {
  Records y;
  y.r[0] = bit_cast<Register<double>>(bit_cast<Register<int64_t>>(x.r[0]) & members.r[0]);
  return y;
}

// All bits where the byte is not 0.
FASTMEM_INLINE Members load_members(const uint8_t* kept) {
  typedef uint8_t Bytes __attribute__((vector_size(kStep)));
  Bytes bytes;
  memcpy(&bytes, kept, sizeof(bytes));
  Members members;
  members.r[0] = __builtin_convertvector(bytes, Register<int64_t>) != 0;
  return members;
}

struct Group {
  Records count = 0, high = 0, low = 0, magnitude = 0, first = 0, offset = 0;

  FASTMEM_INLINE void add(Records x, Members members) {
    first = select(members & (count == 0), x, first);
    const Records mine = masked(x, members), sum = high + mine, part = sum - high;
    low += (high - (sum - part)) + (mine - part);
    high = sum;
    magnitude += abs(mine);
    offset += masked(x - first, members);
    count += masked(1, members);
  }

  FASTMEM_INLINE Records centre() const { return first + select(count == 0, 0, offset / count); }

  FASTMEM_INLINE void put(const GroupSums& to, int64_t record, Records centre,
                          Records squares) const {
    store(to.count + record, count);
    store(to.high + record, high);
    store(to.low + record, low);
    store(to.magnitude + record, magnitude);
    store(to.centre + record, centre);
    store(to.squares + record, squares);
  }
};

void sum(const GroupSumsCall& call) {
  for (int64_t record = 0; record < call.pitch; record += kStep) {
    Group in, out;
    for (int64_t model = 0; model < call.models; ++model) {
      const int64_t at = model * call.pitch + record;
      const Records x = load(call.said + at);
      const Members members = load_members(call.kept + at);
      in.add(x, members);
      out.add(x, !members);
    }
    const Records centre_in = in.centre(), centre_out = out.centre();
    Records squares_in = 0, squares_out = 0;
    for (int64_t model = 0; model < call.models; ++model) {
      const int64_t at = model * call.pitch + record;
      const Records x = load(call.said + at);
      const Members members = load_members(call.kept + at);
      const Records from_in = x - centre_in, from_out = x - centre_out;
      squares_in += masked(from_in * from_in, members);
      squares_out += masked(from_out * from_out, !members);
    }
    in.put(call.groups[0], record, centre_in, squares_in);
    out.put(call.groups[1], record, centre_out, squares_out);
  }
}

}  // namespace

extern const GroupSumsKernels group_sums;
const GroupSumsKernels group_sums = {&sum};

}  // namespace fastmem::cpu::FASTMEM_ISA
