// A convolution whose four outputs of a window never leave the registers: a tile sums them up for a
// group of outputs side by side, and stores the largest, or 0, and which one it was.
//
// Weights are packed group by group, and within a group pass by pass: as many rows of the kernel as
// stay in the innermost cache while all windows of an image go by. Between passes the sums wait in
// memory.
#include "cpu/kernels/conv_pool_panel.h"
#include "cpu/kernels/pooled.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

// Registers of outputs side by side: with the four pixels of a window as many sums as hide a
// multiply-add's latency.
inline constexpr int kGroup = 2;
inline constexpr int64_t kPassBytes = 16384;

template <class T>
struct Sums {
  Register<T> r[4][kGroup];
};

// sums += patches * weights over `rows` rows of the kernel.
template <class T, int kRegisters>
FASTMEM_OUT_OF_LINE void add_rows(const Panel<T>& panel, const T* patch, const T* weights,
                                  int64_t rows, Sums<T>& sums) {
  Register<T> sum[4][kRegisters];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kRegisters; ++j) sum[i][j] = sums.r[i][j];
  }
  const int64_t run = panel.run, pitch = panel.pitch, row_step = panel.row_step;
  for (int64_t row = 0; row < rows; ++row, patch += row_step) {
    const T* below = patch + row_step;
    for (int64_t k = 0; k < run; ++k, weights += kGroup * kLanes<T>) {
      Register<T> weight[kRegisters];
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) weight[j] = load_register(weights + j * kLanes<T>);
      const T* pixels[4] = {patch + k, patch + pitch + k, below + k, below + pitch + k};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Register<T> pixel = *pixels[i] - Register<T>{};
#pragma GCC unroll 4
        for (int j = 0; j < kRegisters; ++j) sum[i][j] = fma(pixel, weight[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kRegisters; ++j) sums.r[i][j] = sum[i][j];
  }
}

template <class T>
class Forward {
 public:
  Forward(const ConvPool& call, void* memory)
      : call_(call),
        panel_(call),
        groups_(divide_up(call.outputs, kGroup * kLanes<T>)),
        pass_rows_(least(call.kernel_height, kPassBytes / (panel_.run * kGroup * kLanes<T> *
                                                           static_cast<int64_t>(sizeof(T))))) {
    if (pass_rows_ < 1) pass_rows_ = 1;
    // Passes of about equal length.
    pass_rows_ = divide_up(call.kernel_height, divide_up(call.kernel_height, pass_rows_));
    Pieces pieces(memory);
    pieces.take(weights_, packed(groups_, 0, 0));
    pieces.take(bias_, groups_ * kGroup * kLanes<T>);
    pieces.take(panels_, call.parts() * panel_.blocks * panel_.elements);
    pieces.take(sums_, call.parts() * panel_.windows);
    used_ = pieces.bytes();
  }

  int64_t used() const { return used_; }

  void start() {
    constexpr int64_t kOutputs = kGroup * kLanes<T>;
    clear(weights_, packed(groups_, 0, 0));
    clear(bias_, groups_ * kOutputs);
    copy(bias_, static_cast<const T*>(call_.bias), call_.outputs);
    const T* from = static_cast<const T*>(call_.weight);
    for (int64_t output = 0; output < call_.outputs; ++output) {
      for (int64_t row = 0; row < call_.kernel_height; ++row) {
        for (int64_t column = 0; column < call_.kernel_width; ++column, from += call_.channels) {
          for (int64_t c = 0; c < call_.channels; ++c) {
            const int64_t k = column * panel_.pitch + c % panel_.pitch;
            weights_[packed(output / kOutputs, c / panel_.pitch, row) + k * kOutputs +
                     output % kOutputs] = from[c];
          }
        }
      }
    }
  }

  void part(int64_t part) {
    T* panel = panels_ + part * panel_.blocks * panel_.elements;
    Sums<T>* sums = sums_ + part * panel_.windows;
    clear(panel, panel_.blocks * panel_.elements);  // the border stays zero from now on
    const int64_t end = call_.images * (part + 1) / call_.parts();
    for (int64_t image = call_.images * part / call_.parts(); image < end; ++image) {
      for (int64_t block = 0; block < panel_.blocks; ++block)
        panel_.fill(image, block, panel + block * panel_.elements);
      for (int64_t group = 0; group < groups_; ++group) {
        const int64_t left = divide_up(call_.outputs - group * kGroup * kLanes<T>, kLanes<T>);
        with_count<kGroup>(least(left, kGroup), [&]<int kRegisters>() {
          for (int64_t block = 0; block < panel_.blocks; ++block)
            convolve<kRegisters>(panel + block * panel_.elements, group, block, sums);
          finish_windows<kRegisters>(image, group, sums);
        });
      }
    }
  }

 private:
  // Where the weights of a group, a block and a row of the kernel lie packed.
  int64_t packed(int64_t group, int64_t block, int64_t row) const {
    return ((group * panel_.blocks + block) * call_.kernel_height + row) * panel_.run * kGroup *
           kLanes<T>;
  }

  template <int kRegisters>
  void convolve(const T* panel, int64_t group, int64_t block, Sums<T>* sums) const {
    for (int64_t row = 0; row < call_.kernel_height; row += pass_rows_) {
      const int64_t rows = least(pass_rows_, call_.kernel_height - row);
      for (int64_t window = 0; window < panel_.windows; ++window) {
        if (block == 0 && row == 0) begin<kRegisters>(group, sums[window]);
        add_rows<T, kRegisters>(panel_, panel + panel_.corner(window) + row * panel_.row_step,
                                weights_ + packed(group, block, row), rows, sums[window]);
      }
    }
  }

  template <int kRegisters>
  FASTMEM_INLINE void begin(int64_t group, Sums<T>& sums) const {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < kRegisters; ++j)
        sums.r[i][j] = load_register(bias_ + (group * kGroup + j) * kLanes<T>);
    }
  }

  template <int kRegisters>
  void finish_windows(int64_t image, int64_t group, const Sums<T>* sums) const {
    for (int64_t window = 0; window < panel_.windows; ++window) {
      const int64_t row = (image * panel_.windows + window) * call_.outputs;
      for (int j = 0; j < kRegisters; ++j) {
        const int64_t output = (group * kGroup + j) * kLanes<T>;
        const auto value_of = [&](int place) __attribute__((always_inline)) {
          return sums[window].r[place][j];
        };
        store_pooled(pool<T>(value_of), least(kLanes<T>, call_.outputs - output),
                     static_cast<T*>(call_.y) + row + output, call_.winners + row + output);
      }
    }
  }

  const ConvPool& call_;
  const Panel<T> panel_;
  int64_t groups_, pass_rows_, used_;
  T *weights_, *bias_, *panels_;
  Sums<T>* sums_;
};

template <class T>
constexpr ConvPoolKernel kKernel{
    [](const ConvPool& call) { return Forward<T>(call, nullptr).used(); },
    [](const ConvPool& call, void* scratch) { Forward<T>(call, scratch).start(); },
    [](const ConvPool& call, void* scratch, int64_t part) { Forward<T>(call, scratch).part(part); },
    [](const ConvPool&, void*) {}};

}  // namespace

extern const ConvPoolKernels conv_pool_forward;
const ConvPoolKernels conv_pool_forward = {{kKernel<float>, kKernel<double>}};

}  // namespace fastmem::cpu::FASTMEM_ISA
