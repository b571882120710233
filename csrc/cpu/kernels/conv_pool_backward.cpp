// The gradient of a convolution behind which ReLU and 2 x 2 max pooling follow.
//
// Of the four outputs of a window at most one has a gradient: the winner's. Everything is therefore
// summed over windows, d = the pooled map's gradient, at the patch of the input that the winner
// saw: weight gradient += d * patch, input gradient at the patch += d * weights. That is a quarter
// of the multiplications of a convolution's two gradients, less where the ReLU is off, and the
// gradient by the convolution's full-size output is never formed.
//
// Winners differ from output to output, so nothing is shared between outputs: one output's windows
// are a list of (d, where its patch begins), and a tile of registers, a piece of the patch, goes
// through the list.
#include "cpu/kernels/conv_pool_panel.h"
#include "cpu/kernels/pooled.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

// Rows of a patch that a tile spans where they are short.
inline constexpr int kTileRows = 5;

// A window whose ReLU is on.
template <class T>
struct Window {
  T gradient;
  Integer<T> patch;  // where in the panel it begins
};

// sums += gradient * patch, over all windows, at least one.
template <class T, int kRows, int kRegisters>
FASTMEM_OUT_OF_LINE void add_patches(const Window<T>* windows, int64_t count, const T* panel,
                                     int64_t row_step, T* sums, int64_t sums_step) {
  Register<T> sum[kRows][kRegisters];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kRegisters; ++j)
      sum[i][j] = load_register(sums + i * sums_step + j * kLanes<T>);
  }
  const Window<T>* const end = windows + count;
  do {
    const Register<T> gradient = windows->gradient - Register<T>{};
    const T* patch = panel + windows->patch;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kRegisters; ++j) {
        sum[i][j] = fma(gradient, load_register(patch + i * row_step + j * kLanes<T>), sum[i][j]);
      }
    }
  } while (++windows != end);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kRegisters; ++j)
      store_register(sums + i * sums_step + j * kLanes<T>, sum[i][j]);
  }
}

// patch += gradient * weights, for all windows, at least one.
template <class T, int kRows, int kRegisters>
FASTMEM_OUT_OF_LINE void spread_weights(const Window<T>* windows, int64_t count, T* panel,
                                        int64_t row_step, const T* weights, int64_t weights_step) {
  Register<T> weight[kRows][kRegisters];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kRegisters; ++j)
      weight[i][j] = load_register(weights + i * weights_step + j * kLanes<T>);
  }
  const Window<T>* const end = windows + count;
  do {
    const Register<T> gradient = windows->gradient - Register<T>{};
    T* patch = panel + windows->patch;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kRegisters; ++j) {
        T* at = patch + i * row_step + j * kLanes<T>;
        store_register(at, fma(gradient, weight[i][j], load_register(at)));
      }
    }
  } while (++windows != end);
}

template <class T>
class Backward {
 public:
  Backward(const ConvPool& call, void* memory)
      : call_(call), panel_(call), run_(divide_up(panel_.run, kLanes<T>)) {
    weight_elements_ = packed(call.outputs, 0, 0);
    Pieces pieces(memory);
    pieces.take(weights_, weight_elements_);
    pieces.take(sums_, call.parts() * weight_elements_);
    pieces.take(bias_sums_, call.parts() * call.outputs);
    pieces.take(panels_, call.parts() * 2 * panel_.elements);
    pieces.take(lists_, call.parts() * call.outputs * panel_.windows);
    pieces.take(counts_, call.parts() * call.outputs);
    used_ = pieces.bytes();
  }

  int64_t used() const { return used_; }

  void start() {
    clear(weights_, weight_elements_);
    const T* from = static_cast<const T*>(call_.weight);
    each_tap([&](int64_t at, int64_t first, int64_t count) {
      copy(weights_ + at, from + first, count);
    });
  }

  void part(int64_t part) {
    T* sums = sums_ + part * weight_elements_;
    T* bias_sums = bias_sums_ + part * call_.outputs;
    T* panel = panels_ + part * 2 * panel_.elements;
    T* spread = panel + panel_.elements;
    Window<T>* lists = lists_ + part * call_.outputs * panel_.windows;
    int64_t* counts = counts_ + part * call_.outputs;
    clear(sums, weight_elements_);
    clear(bias_sums, call_.outputs);
    clear(panel, panel_.elements);  // the border stays zero from now on
    const int64_t end = call_.images * (part + 1) / call_.parts();
    for (int64_t image = call_.images * part / call_.parts(); image < end; ++image) {
      list_windows(image, lists, counts, bias_sums);
      for (int64_t block = 0; block < panel_.blocks; ++block) {
        panel_.fill(image, block, panel);
        each_tile(
            block, lists, counts,
            [&]<int kRows, int kRegisters>(const Window<T>* windows, int64_t count, int64_t at,
                                           int64_t weight) __attribute__((always_inline)) {
              add_patches<T, kRows, kRegisters>(windows, count, panel + at, panel_.row_step,
                                                sums + weight, run_ * kLanes<T>);
            });
        if (call_.x_gradient == nullptr) continue;
        clear(spread, panel_.elements);
        each_tile(
            block, lists, counts,
            [&]<int kRows, int kRegisters>(const Window<T>* windows, int64_t count, int64_t at,
                                           int64_t weight) __attribute__((always_inline)) {
              spread_weights<T, kRows, kRegisters>(windows, count, spread + at, panel_.row_step,
                                                   weights_ + weight, run_ * kLanes<T>);
            });
        panel_.empty(image, block, spread);
      }
    }
  }

  void finish() {
    for (int64_t part = 1; part < call_.parts(); ++part) {
      add(sums_ + part * weight_elements_, weight_elements_, sums_);
      add(bias_sums_ + part * call_.outputs, call_.outputs, bias_sums_);
    }
    T* to = static_cast<T*>(call_.weight_gradient);
    each_tap(
        [&](int64_t at, int64_t first, int64_t count) { copy(to + first, sums_ + at, count); });
    copy(static_cast<T*>(call_.bias_gradient), bias_sums_, call_.outputs);
  }

 private:
  static void add(const T* from, int64_t count, T* to) {
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  }

  // Where the weights of an output, a block and a row of the kernel lie packed.
  int64_t packed(int64_t output, int64_t block, int64_t row) const {
    return ((output * panel_.blocks + block) * call_.kernel_height + row) * run_ * kLanes<T>;
  }

  // Calls body(where a tap's weights of a block lie packed, where they lie else, their number).
  template <class Body>
  void each_tap(Body&& body) const {
    for (int64_t output = 0; output < call_.outputs; ++output) {
      for (int64_t block = 0; block < panel_.blocks; ++block) {
        for (int64_t row = 0; row < call_.kernel_height; ++row) {
          for (int64_t column = 0; column < call_.kernel_width; ++column) {
            const int64_t tap = (output * call_.kernel_height + row) * call_.kernel_width + column;
            body(packed(output, block, row) + column * panel_.pitch,
                 tap * call_.channels + block * panel_.pitch, panel_.channels(block));
          }
        }
      }
    }
  }

  // Every output's windows whose ReLU is on, and the sums of their gradients.
  void list_windows(int64_t image, Window<T>* lists, int64_t* counts, T* bias_sums) const {
    clear(counts, call_.outputs);
    const int64_t first = image * panel_.windows * call_.outputs;
    const T* gradient = static_cast<const T*>(call_.y) + first;
    const uint8_t* winners = call_.winners + first;
    for (int64_t window = 0; window < panel_.windows; ++window) {
      const int64_t corner = panel_.corner(window);
      Integer<T> patches[kNobody + 1] = {};
      for (int place = 0; place < kNobody; ++place)
        patches[place] = static_cast<Integer<T>>(corner + panel_.place(place));
      for (int64_t output = 0; output < call_.outputs; ++output) {
        const bool on = winners[output] < kNobody;
        lists[output * panel_.windows + counts[output]] = {gradient[output],
                                                           patches[winners[output]]};
        counts[output] += on;
        bias_sums[output] += on ? gradient[output] : 0;
      }
      gradient += call_.outputs;
      winners += call_.outputs;
    }
  }

  // Calls body.template operator()<rows, registers>(windows, their number, where a patch's tile
  // begins, where its weights do) for every output and tile of a block.
  template <class Body>
  FASTMEM_INLINE void each_tile(int64_t block, const Window<T>* lists, const int64_t* counts,
                                Body&& body) const {
    const bool tall = run_ <= kRunTile / kTileRows;
    const int64_t rows = tall ? kTileRows : 1, registers = tall ? run_ : kRunTile;
    for (int64_t row = 0; row < call_.kernel_height; row += rows) {
      for (int64_t first = 0; first < run_; first += registers) {
        const int64_t at = row * panel_.row_step + first * kLanes<T>;
        const int64_t tile_rows = least(rows, call_.kernel_height - row);
        const int64_t tile_registers = least(registers, run_ - first);
        const auto of_all_outputs = [&]<int kRows, int kRegisters>() {
          for (int64_t output = 0; output < call_.outputs; ++output) {
            if (counts[output] == 0) continue;
            body.template operator()<kRows, kRegisters>(
                lists + output * panel_.windows, counts[output], at,
                packed(output, block, row) + first * kLanes<T>);
          }
        };
        if (tall) {
          with_count<kTileRows>(tile_rows, [&]<int kRows>() {
            with_count<kRunTile / kTileRows>(tile_registers, [&]<int kRegisters>() {
              of_all_outputs.template operator()<kRows, kRegisters>();
            });
          });
        } else {
          with_count<kRunTile>(tile_registers, [&]<int kRegisters>() {
            of_all_outputs.template operator()<1, kRegisters>();
          });
        }
      }
    }
  }

  const ConvPool& call_;
  const Panel<T> panel_;
  const int64_t run_;  // registers of a row of a patch
  int64_t weight_elements_, used_;
  T *weights_, *sums_, *bias_sums_, *panels_;
  Window<T>* lists_;
  int64_t* counts_;
};

template <class T>
constexpr ConvPoolKernel kKernel{
    [](const ConvPool& call) { return Backward<T>(call, nullptr).used(); },
    [](const ConvPool& call, void* scratch) { Backward<T>(call, scratch).start(); },
    [](const ConvPool& call, void* scratch, int64_t part) {
      Backward<T>(call, scratch).part(part);
    },
    [](const ConvPool& call, void* scratch) { Backward<T>(call, scratch).finish(); }};

}  // namespace

extern const ConvPoolKernels conv_pool_backward;
const ConvPoolKernels conv_pool_backward = {{kKernel<float>, kKernel<double>}};

}  // namespace fastmem::cpu::FASTMEM_ISA
