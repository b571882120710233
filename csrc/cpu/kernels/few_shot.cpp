// Episodes of a few dozen records, one after the other, each in a few pages of memory that stay in
// the first cache.
#include "cpu/kernels/few_shot.h"

#include "cpu/kernels/convert.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/pieces.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

using V = Vec<double>;

constexpr int64_t kStep = V::kSize;
constexpr double kSmallestNorm = 1e-6, kSmallestDistance = 1e-12;

FASTMEM_INLINE int64_t padded(int64_t count) { return (count + kStep - 1) / kStep * kStep; }

// ---------------------------------------------------------------------------------- nearest shares

// Rows of the gallery that distances are taken to at once.
constexpr int64_t kTogether = 4;

// The gallery is the known records and the means of the two classes.
struct Gallery {
  explicit Gallery(const NearestShares& call, void* memory)
      : pieces(memory),
        width(padded(call.width)),
        size(call.known + 2),
        rows(pieces.take<double>((size + kTogether - 1) / kTogether * kTogether * width)),
        row(pieces.take<double>(width)),
        middle(pieces.take<double>(width)),
        distance(pieces.take<double>(size + kTogether)),
        nearest(pieces.take<double>(size)),
        is_member(pieces.take<bool>(size)),
        nearest_is_member(pieces.take<bool>(size)) {}

  Pieces pieces;
  int64_t width, size;
  double *rows, *row, *middle, *distance, *nearest;
  bool *is_member, *nearest_is_member;
};

// (x - centre) / |x - centre|, where asked for; zeros behind `width`.
FASTMEM_INLINE void transform(const NearestShares& call, const double* centre, const double* x,
                              double* to, int64_t width) {
  V squares = 0;
  for (int64_t i = 0; i < width; i += kStep) {
    const int64_t left = call.width - i;
    V value = left >= kStep ? load(x + i) : load_first(x + i, left);
    if (call.normalise && centre != nullptr)
      value -= left >= kStep ? load(centre + i) : load_first(centre + i, left);
    squares = fma(value, value, squares);
    store(to + i, value);
  }
  if (!call.normalise) return;
  const double norm = __builtin_sqrt(sum(squares));
  const double factor = 1 / (norm > kSmallestNorm ? norm : kSmallestNorm);
  for (int64_t i = 0; i < width; i += kStep) store(to + i, load(to + i) * factor);
}

// The mean of the known records of one kind, or of all of them.
FASTMEM_INLINE void average(const NearestShares& call, int64_t episode, bool all, bool member,
                            double* mean) {
  const int64_t* support = call.support + episode * call.known;
  const bool* members = call.members + episode * call.known;
  for (int64_t i = 0; i < call.width; ++i) mean[i] = 0;
  double count = 0;
  for (int64_t known = 0; known < call.known; ++known) {
    if (!all && members[known] != member) continue;
    const double* x = call.records + support[known] * call.width;
    for (int64_t i = 0; i < call.width; ++i) mean[i] += x[i];
    ++count;
  }
  for (int64_t i = 0; i < call.width; ++i) mean[i] /= count;
}

// Lays out an episode's gallery; returns the centre of its features, or null.
const double* fill(const NearestShares& call, Gallery& gallery, int64_t episode) {
  const double* centre = call.centre;
  if (call.on_support) {
    average(call, episode, true, true, gallery.middle);
    centre = gallery.middle;
  }
  for (int64_t known = 0; known < call.known; ++known) {
    const int64_t place = episode * call.known + known;
    transform(call, centre, call.records + call.support[place] * call.width,
              gallery.rows + known * gallery.width, gallery.width);
    gallery.is_member[known] = call.members[place];
  }
  for (int64_t kind = 0; kind < 2; ++kind) {
    const int64_t place = call.known + kind;
    average(call, episode, false, kind == 1, gallery.row);
    transform(call, centre, gallery.row, gallery.rows + place * gallery.width, gallery.width);
    gallery.is_member[place] = kind == 1;
  }
  return centre;
}

// Squared distances from gallery.row to every row of the gallery.
FASTMEM_INLINE void measure(Gallery& gallery) {
  for (int64_t first = 0; first < gallery.size; first += kTogether) {
    const double* rows = gallery.rows + first * gallery.width;
    V sums[kTogether] = {0, 0, 0, 0};
    for (int64_t i = 0; i < gallery.width; i += kStep) {
      const V x = load(gallery.row + i);
#pragma GCC unroll 4
      for (int64_t row = 0; row < kTogether; ++row) {
        const V apart = x - load(rows + row * gallery.width + i);
        sums[row] = fma(apart, apart, sums[row]);
      }
    }
    for (int64_t row = 0; row < kTogether; ++row) gallery.distance[first + row] = sum(sums[row]);
  }
}

void nearest(const NearestShares& call, int64_t begin, int64_t end, void* memory) {
  Gallery gallery(call, memory);
  const int64_t most = 2 * call.sizes - 1;
  for (int64_t i = 0; i < (gallery.size + kTogether - 1) / kTogether * kTogether * gallery.width;
       ++i) {
    gallery.rows[i] = 0;
  }
  for (int64_t episode = begin; episode < end; ++episode) {
    const double* centre = fill(call, gallery, episode);
    for (int64_t asked = 0; asked < call.count; ++asked) {
      const int64_t place = episode * call.count + asked;
      transform(call, centre, call.records + call.asked[place] * call.width, gallery.row,
                gallery.width);
      measure(gallery);
      // Insertion into the `most` nearest; of equals the first one stays first.
      int64_t found = 0;
      for (int64_t row = 0; row < gallery.size; ++row) {
        const double distance = gallery.distance[row];
        if (found == most && !(distance < gallery.nearest[found - 1])) continue;
        int64_t at = found < most ? found++ : found - 1;
        for (; at > 0 && distance < gallery.nearest[at - 1]; --at) {
          gallery.nearest[at] = gallery.nearest[at - 1];
          gallery.nearest_is_member[at] = gallery.nearest_is_member[at - 1];
        }
        gallery.nearest[at] = distance;
        gallery.nearest_is_member[at] = gallery.is_member[row];
      }
      double all = 0, of_members = 0;
      double* shares = call.shares + place * call.sizes;
      for (int64_t i = 0; i < most; ++i) {
        const double distance = gallery.nearest[i];
        const double weight = 1 / (distance < kSmallestDistance ? kSmallestDistance : distance);
        all += weight;
        if (gallery.nearest_is_member[i]) of_members += weight;
        if (i % 2 == 0) shares[i / 2] = of_members / all;
      }
    }
  }
}

int64_t nearest_bytes(const NearestShares& call) { return Gallery(call, nullptr).pieces.bytes(); }

// ------------------------------------------------------------------------------- label propagation

constexpr int kPasses = 20, kFirstStop = 3;
constexpr double kTolerance = 1e-6;
// exp(-708) is the last normal number; what is further below a row's top has no weight.
constexpr double kLargest = 708;
constexpr double kNowhere = -1e300;

FASTMEM_INLINE V exp_of_minus_capped(V u) {
  u = min(V(kLargest), u);
  const auto e = exp_of_minus(u, u);
  return e.t * fma(e.w * e.w, e.rest, V(1) - e.w);
}

struct Problem {
  explicit Problem(const LabelPropagation& call, void* memory)
      : pieces(memory),
        // Prototypes of non-members, then of members, each padded to whole registers.
        width(padded(call.prototypes) + kStep),
        row_count(call.count),
        neighbours(pieces.take<int32_t>(call.count * call.count)),
        nearest(pieces.take<double>(call.count)),
        minus_a(pieces.take<double>(call.count * width)),
        start(pieces.take<double>(call.count * width)),
        y(pieces.take<double>(call.count * width)),
        z(pieces.take<double>(call.count * width)),
        drawn(pieces.take<double>(call.count * width)),
        top(pieces.take<double>(call.count)),
        total(pieces.take<double>(padded(call.count))) {}

  Pieces pieces;
  int64_t width, row_count;
  int32_t* neighbours;  // [count][count - 1], the nearest first
  double *nearest, *minus_a, *start, *y, *z, *drawn, *top, *total;
  int64_t non_members = 0, used = 0;  // where members begin, and where they end
};

void lay_out(const LabelPropagation& call, Problem& problem, int64_t episode) {
  const bool* members = call.members + episode * call.prototypes;
  int64_t members_count = 0;
  for (int64_t p = 0; p < call.prototypes; ++p) members_count += members[p];
  problem.non_members = padded(call.prototypes - members_count);
  problem.used = problem.non_members + padded(members_count);
  const double* a = call.distances + episode * call.count * call.prototypes;
  for (int64_t i = 0; i < call.count; ++i) {
    double* row = problem.minus_a + i * problem.width;
    for (int64_t p = 0; p < problem.used; ++p) row[p] = kNowhere;
    int64_t at[2] = {0, problem.non_members};
    for (int64_t p = 0; p < call.prototypes; ++p)
      row[at[members[p] ? 1 : 0]++] = -a[i * call.prototypes + p];
  }
}

// The nearest others of each record, as many as any parameter asks for; of equals the first.
void join(const LabelPropagation& call, Problem& problem, int64_t episode) {
  int64_t most = 0;
  for (int64_t g = 0; g < call.grid; ++g) {
    const int64_t k = call.k[episode * call.grid + g];
    most = k - 1 > most ? k - 1 : most;
  }
  most = most < call.count - 1 ? most : call.count - 1;
  const double* apart = call.apart + episode * call.count * call.count;
  for (int64_t i = 0; i < call.count && most > 0; ++i) {
    int32_t* neighbours = problem.neighbours + i * call.count;
    int64_t found = 0;
    for (int64_t j = 0; j < call.count; ++j) {
      const double distance = apart[i * call.count + j];
      if (j == i || (found == most && !(distance < problem.nearest[found - 1]))) continue;
      int64_t at = found < most ? found++ : found - 1;
      for (; at > 0 && distance < problem.nearest[at - 1]; --at) {
        problem.nearest[at] = problem.nearest[at - 1];
        neighbours[at] = neighbours[at - 1];
      }
      problem.nearest[at] = distance;
      neighbours[at] = static_cast<int32_t>(j);
    }
  }
}

// y = softmax(z) in every row, with its top and its sum.
void soften(Problem& problem, const double* z, double* y) {
  for (int64_t i = 0; i < problem.row_count; ++i) {
    const double* from = z + i * problem.width;
    double* to = y + i * problem.width;
    V tops = kNowhere, sums = 0;
    for (int64_t p = 0; p < problem.used; p += kStep) tops = max(tops, load(from + p));
    const double top = maximum(tops);
    for (int64_t p = 0; p < problem.used; p += kStep) {
      const V weight = exp_of_minus_capped(V(top) - load(from + p));
      sums += weight;
      store(to + p, weight);
    }
    const double total = sum(sums), factor = 1 / total;
    for (int64_t p = 0; p < problem.used; p += kStep) store(to + p, load(to + p) * factor);
    problem.top[i] = top;
    problem.total[i] = total;
  }
}

// z = -a + drawn, and drawn = lam A y; returns sum Y (drawn before - drawn after). The neighbours'
// rows are added in registers, a few at a time.
double draw(Problem& problem, const double* y, double lam, int64_t others, bool first) {
  V change = 0;
  for (int64_t i = 0; i < problem.row_count; ++i) {
    const int32_t* neighbours = problem.neighbours + i * problem.row_count;
    double* drawn = problem.drawn + i * problem.width;
    for (int64_t p = 0; p < problem.used; p += kStep) {
      V sums = 0;
      for (int64_t j = 0; j < others; ++j)
        sums += load(y + static_cast<int64_t>(neighbours[j]) * problem.width + p);
      sums *= lam;
      if (!first) change = fma(load(y + i * problem.width + p), load(drawn + p) - sums, change);
      store(drawn + p, sums);
    }
  }
  return sum(change);
}

double energy_of_tops(const Problem& problem) {
  V logs = 0;
  double tops = 0;
  for (int64_t i = 0; i < problem.row_count; ++i) tops += problem.top[i];
  for (int64_t i = 0; i < problem.row_count; i += kStep) logs += log(load(problem.total + i));
  return tops + sum(logs);
}

double log_of_sum(const double* z, int64_t begin, int64_t end) {
  V tops = kNowhere, sums = 0;
  for (int64_t p = begin; p < end; p += kStep) tops = max(tops, load(z + p));
  const double top = maximum(tops);
  for (int64_t p = begin; p < end; p += kStep) sums += exp_of_minus_capped(V(top) - load(z + p));
  return top + log(V(sum(sums)))[0];
}

void solve(const LabelPropagation& call, Problem& problem, double lam, int64_t k, double* to) {
  int64_t others = k - 1 < call.count - 1 ? k - 1 : call.count - 1;
  others = others > 0 ? others : 0;
  draw(problem, problem.start, lam, others, true);
  double before = 0;
  for (int number = 1; number <= kPasses; ++number) {
    for (int64_t i = 0; i < call.count * problem.width; i += kStep)
      store(problem.z + i, load(problem.minus_a + i) + load(problem.drawn + i));
    soften(problem, problem.z, problem.y);
    const double tops = energy_of_tops(problem);
    const double energy = draw(problem, problem.y, lam, others, false) - tops;
    const double moved = energy - before;
    if (number >= kFirstStop &&
        (moved < 0 ? -moved : moved) <= kTolerance * (before < 0 ? -before : before)) {
      break;
    }
    before = energy;
  }
  for (int64_t i = 0; i < call.count; ++i) {
    const double* z = problem.z + i * problem.width;
    to[i] =
        log_of_sum(z, problem.non_members, problem.used) - log_of_sum(z, 0, problem.non_members);
  }
}

void propagation(const LabelPropagation& call, int64_t begin, int64_t end, void* memory) {
  Problem problem(call, memory);
  for (int64_t i = 0; i < call.count * problem.width; ++i)
    problem.minus_a[i] = problem.drawn[i] = 0;
  for (int64_t i = 0; i < padded(call.count); ++i) problem.total[i] = 1;
  for (int64_t episode = begin; episode < end; ++episode) {
    lay_out(call, problem, episode);
    join(call, problem, episode);
    soften(problem, problem.minus_a, problem.start);
    for (int64_t g = 0; g < call.grid; ++g) {
      const int64_t at = episode * call.grid + g;
      solve(call, problem, call.lam[at], call.k[at], call.log_odds + at * call.count);
    }
  }
}

int64_t propagation_bytes(const LabelPropagation& call) {
  return Problem(call, nullptr).pieces.bytes();
}

}  // namespace

extern const FewShotKernels few_shot;
const FewShotKernels few_shot = {&nearest_bytes, &nearest, &propagation_bytes, &propagation};

}  // namespace fastmem::cpu::FASTMEM_ISA
