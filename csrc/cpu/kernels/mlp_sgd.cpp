// Steps of stochastic gradient descent on a ReLU perceptron, one model on one thread.
//
// All three products of a layer run through one tile (mlp_panels.h): y = x w, d' = d w^T and the
// gradient x^T d. Records are read where they lie, through their index. The gradient is never
// stored: the tile that has summed it moves the momentum and the weights. What a sum adds up, and
// in which order, depends on the model and its batch alone.
#include "cpu/kernels/mlp_sgd.h"

#include "cpu/kernels/math.h"
#include "cpu/kernels/mlp_panels.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

// Rows of a panel that stay in the innermost cache while all records pass by.
template <class T>
inline constexpr int64_t kBlockRows =
    (kVectorBytes == 64 ? 32768 : 16384) / (kPanel<T> * static_cast<int64_t>(sizeof(T)));

template <class T>
struct Layer {
  Panels<T> weight, weight_speed;  // row k: the weights from input k
  Panels<T> bias, bias_speed;      // one row
  int64_t inputs, outputs;
  // Of the layer's outputs, one row a record. Rows are an odd number of cache lines apart: powers
  // of two would put all of them into a few sets of the cache.
  T* activations;
  int64_t pitch;
  const T** inputs_of;  // where each record of the batch begins
};

template <class T>
int64_t pitch_of(int64_t outputs) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t lines = divide_up(divide_up(outputs, kPanel<T>) * kPanel<T>, kLine);
  return (lines | 1) * kLine;
}

template <class T>
class Steps {
 public:
  // Lays out the memory; with none, used() is what it takes.
  Steps(const MlpVisit& visit, const MlpRule& rule, void* memory)
      : visit_(visit), rule_(rule), pieces_(memory) {
    for (int64_t s = 0; s < visit.steps; ++s) {
      const int64_t size = visit.bounds[s + 1] - visit.bounds[s];
      largest_ = size > largest_ ? size : largest_;
    }
    layers_ = pieces_.take<Layer<T>>(visit.depth);
    int64_t widest = 0;
    for (int64_t l = 0; l < visit.depth; ++l) {
      const MlpLayer& given = visit.layers[l];
      const int64_t weights = Panels<T>::elements(given.inputs, given.outputs);
      const int64_t biases = Panels<T>::elements(1, given.outputs);
      const int64_t pitch = pitch_of<T>(given.outputs);
      const Layer<T> layer = {
          {pieces_.take<T>(weights), given.inputs, given.outputs},
          {pieces_.take<T>(weights), given.inputs, given.outputs},
          {pieces_.take<T>(biases), 1, given.outputs},
          {pieces_.take<T>(biases), 1, given.outputs},
          given.inputs,
          given.outputs,
          pieces_.take<T>(largest_ * pitch),
          pitch,
          pieces_.take<const T*>(largest_),
      };
      if (memory != nullptr) layers_[l] = layer;
      widest = given.outputs > widest ? given.outputs : widest;
    }
    slopes_ = pieces_.take<T>(Panels<T>::elements(largest_, widest));
    for (T*& turned : turned_) turned = pieces_.take<T>(Panels<T>::elements(widest, largest_));
  }

  int64_t used() const { return pieces_.bytes(); }

  void run() {
    for (int64_t l = 0; l < visit_.depth; ++l) {
      const MlpLayer& given = visit_.layers[l];
      const Layer<T>& layer = layers_[l];
      pack(static_cast<const T*>(given.weight), layer.outputs, layer.inputs, layer.weight);
      pack(static_cast<const T*>(given.weight_speed), layer.outputs, layer.inputs,
           layer.weight_speed);
      pack(static_cast<const T*>(given.bias), layer.outputs, 1, layer.bias);
      pack(static_cast<const T*>(given.bias_speed), layer.outputs, 1, layer.bias_speed);
    }
    for (int64_t s = 0; s < visit_.steps; ++s) step(s);
    for (int64_t l = 0; l < visit_.depth; ++l) {
      const MlpLayer& given = visit_.layers[l];
      const Layer<T>& layer = layers_[l];
      unpack(layer.weight, layer.outputs, layer.inputs, static_cast<T*>(given.weight));
      unpack(layer.weight_speed, layer.outputs, layer.inputs, static_cast<T*>(given.weight_speed));
      unpack(layer.bias, layer.outputs, 1, static_cast<T*>(given.bias));
      unpack(layer.bias_speed, layer.outputs, 1, static_cast<T*>(given.bias_speed));
    }
  }

 private:
  void step(int64_t s) {
    rows_ = visit_.rows + visit_.bounds[s];
    batch_ = visit_.bounds[s + 1] - visit_.bounds[s];
    rate_ = static_cast<T>(visit_.rates[s]);
    for (int64_t l = 0; l < visit_.depth; ++l) forward(l);
    visit_.losses[s] = loss();
    for (int64_t l = visit_.depth - 1; l >= 0; --l) {
      if (l > 0) slopes_of_inputs(layers_[l]);
      move_weights(layers_[l]);
      move_biases(layers_[l]);
      if (l > 0) through_relu(layers_[l - 1], l > 1);
    }
  }

  void forward(int64_t l) {
    const Layer<T>& layer = layers_[l];
    for (int64_t b = 0; b < batch_; ++b) {
      layer.inputs_of[b] = l == 0 ? static_cast<const T*>(visit_.x) + rows_[b] * visit_.x_stride
                                  : layers_[l - 1].activations + b * layers_[l - 1].pitch;
    }
    const bool last_layer = l + 1 == visit_.depth;
    const int64_t blocks = divide_up(layer.inputs, kBlockRows<T>);
    for (int64_t panel = 0; panel < layer.weight.count(); ++panel) {
      with_registers(layer.weight.registers(panel), [&]<int kRegisters>() {
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t begin = layer.inputs * block / blocks;
          const int64_t end = layer.inputs * (block + 1) / blocks;
          const bool relu = block + 1 == blocks && !last_layer;
          for (int64_t first = 0; first < batch_; first += kTileRows)
            forward_tile<kRegisters>(layer, panel, first, begin, end, relu);
        }
      });
    }
  }

  template <int kRegisters>
  FASTMEM_OUT_OF_LINE void forward_tile(const Layer<T>& layer, int64_t panel, int64_t first,
                                        int64_t begin, int64_t end, bool relu) {
    // At the end of the batch the last record stands in for those that are missing.
    const T* from[kTileRows];
    T* to[kTileRows];
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const int64_t record = least(first + i, batch_ - 1);
      from[i] = layer.inputs_of[record] + begin;
      to[i] = layer.activations + record * layer.pitch + panel * kPanel<T>;
    }
    Sums<T, kTileRows, kRegisters> sums;
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const T* start = begin == 0 ? layer.bias.at(panel, 0) : to[i];
#pragma GCC unroll 8
      for (int j = 0; j < kRegisters; ++j) sums.r[i][j] = load_register(start + j * kLanes<T>);
    }
    sums.add(end - begin, layer.weight.at(panel, begin),
             [&](int64_t t) __attribute__((always_inline)) {
               return [&from, t](int i) __attribute__((always_inline)) { return from[i][t]; };
             });
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kRegisters; ++j) {
        // This order keeps NaN.
        if (relu) sums.r[i][j] = max(Register<T>{}, sums.r[i][j]);
        store_register(to[i] + j * kLanes<T>, sums.r[i][j]);
      }
    }
  }

  // The mean loss; leaves its derivatives by the logits in slopes_ and, turned, in turned_[0].
  double loss() {
    const Layer<T>& layer = layers_[visit_.depth - 1];
    const Panels<T> turned = {turned_[0], layer.outputs, batch_};
    transpose_blocks<T>(
        batch_, layer.outputs,
        [&](int64_t b, int64_t c) __attribute__((always_inline)) {
          return load_register(layer.activations + b * layer.pitch + c);
        },
        [&](const auto& block, int64_t c, int64_t b) __attribute__((always_inline)) {
          T* at = turned.at(b / kPanel<T>, c) + b % kPanel<T>;
          const int64_t last = least(kLanes<T>, layer.outputs - c);
          for (int64_t i = 0; i < last; ++i)
            store_register(at + i * kPanel<T>, (Register<T>)block[i]);
        });
    double total = 0;
    for (int64_t b = 0; b < batch_; b += kLanes<T>)
      total += loss_of_lanes(turned.at(b / kPanel<T>, 0) + b % kPanel<T>, layer.outputs, b);
    to_rows(turned, layer.outputs);
    return total / static_cast<double>(batch_);
  }

  // One record a lane: `at` holds their logits, class after class, and gets the derivatives.
  double loss_of_lanes(T* at, int64_t classes, int64_t first) {
    using V = Vec<T>;
    using C = Constants<T>;
    const int64_t count = least(kLanes<T>, batch_ - first);
    T labels[kLanes<T>];
    for (int64_t lane = 0; lane < kLanes<T>; ++lane)
      labels[lane] = static_cast<T>(lane < count ? visit_.y[rows_[first + lane]] : -1);
    const V label = load(labels);
    V top = load(at), all = 0, own = 0, undefined = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const V logit = load(at + c * kPanel<T>);
      top = max(top, logit);
      all += logit;
      own = select(label == static_cast<T>(c), logit, own);
      undefined += logit - logit;  // NaN for what is not finite, which the exponential would hide
    }
    V sum = undefined;
    for (int64_t c = 0; c < classes; ++c) {
      const V power = exp2((load(at + c * kPanel<T>) - top) * C::kLog2E);
      store(at + c * kPanel<T>, power);
      sum += power;
    }
    const T smoothing = static_cast<T>(rule_.label_smoothing);
    const T share = 1 / static_cast<T>(batch_);
    const V spread = smoothing / static_cast<T>(classes);
    const V scale = (undefined + share) / sum;
    const Mask<T> valid = lanes_below<T, 1>(count);
    for (int64_t c = 0; c < classes; ++c) {
      const V target = select(label == static_cast<T>(c), spread + (1 - smoothing), spread);
      const V slope = load(at + c * kPanel<T>) * scale - target * share;
      store(at + c * kPanel<T>, select(valid, slope, 0));
    }
    const V normaliser = top + log(select(valid, sum, 1)) + undefined;
    const V losses = (1 - smoothing) * (normaliser - own) +
                     smoothing * (normaliser - all / static_cast<T>(classes));
    double total = 0;
    for (int64_t lane = 0; lane < count; ++lane) total += losses[static_cast<int>(lane)];
    return total;
  }

  // slopes_ from its transpose.
  void to_rows(const Panels<T>& turned, int64_t columns) {
    const Panels<T> slopes = {slopes_, batch_, columns};
    transpose_blocks<T>(
        columns, batch_,
        [&](int64_t c, int64_t b) __attribute__((always_inline)) {
          return load_register(turned.at(b / kPanel<T>, c) + b % kPanel<T>);
        },
        [&](const auto& block, int64_t b, int64_t c) __attribute__((always_inline)) {
          T* at = slopes.at(c / kPanel<T>, b) + c % kPanel<T>;
          const int64_t last = least(kLanes<T>, batch_ - b);
          for (int64_t i = 0; i < last; ++i)
            store_register(at + i * kPanel<T>, (Register<T>)block[i]);
        });
  }

  // turned_[1]: the derivatives by the layer's inputs, one row an input, before the ReLU.
  void slopes_of_inputs(const Layer<T>& layer) {
    const Panels<T> from = {turned_[0], layer.outputs, batch_};
    const Panels<T> to = {turned_[1], layer.inputs, batch_};
    for (int64_t first = 0; first < layer.inputs; first += kTileRows) {
      for (int64_t panel = 0; panel < from.count(); ++panel) {
        with_registers(from.registers(panel), [&]<int kRegisters>() {
          slopes_tile<kRegisters>(layer, from, to, first, panel);
        });
      }
    }
  }

  template <int kRegisters>
  FASTMEM_OUT_OF_LINE void slopes_tile(const Layer<T>& layer, const Panels<T>& from,
                                       const Panels<T>& to, int64_t first, int64_t panel) {
    Sums<T, kTileRows, kRegisters> sums{};
    const T* weights[kTileRows];
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i)
      weights[i] = layer.weight.at(0, least(first + i, layer.inputs - 1));
    const int64_t next = layer.inputs * kPanel<T>;
    for (int64_t p = 0; p < layer.weight.count(); ++p) {
      sums.add(layer.weight.width(p), from.at(panel, p * kPanel<T>),
               [&](int64_t t) __attribute__((always_inline)) {
                 return [&weights, t](int i)
                            __attribute__((always_inline)) { return weights[i][t]; };
               });
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) weights[i] += next;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kRegisters; ++j) {
        store_register(to.at(panel, least(first + i, layer.inputs - 1)) + j * kLanes<T>,
                       sums.r[i][j]);
      }
    }
  }

  // From the derivatives by a layer's activations to those before its ReLU: slopes_, and turned_[0]
  // if they go on.
  void through_relu(const Layer<T>& layer, bool onward) {
    const Panels<T> turned = {turned_[1], layer.outputs, batch_};
    const Panels<T> slopes = {slopes_, batch_, layer.outputs};
    const Panels<T> next = {turned_[0], layer.outputs, batch_};
    transpose_blocks<T>(
        layer.outputs, batch_,
        [&](int64_t c, int64_t b) __attribute__((always_inline)) {
          return load_register(turned.at(b / kPanel<T>, c) + b % kPanel<T>);
        },
        [&](auto& block, int64_t b, int64_t c) __attribute__((always_inline)) {
          const int64_t last = least(kLanes<T>, batch_ - b);
#pragma GCC unroll 16
          for (int i = 0; i < kLanes<T>; ++i) {
            if (i >= last) continue;
            const Register<T> y = load_register(layer.activations + (b + i) * layer.pitch + c);
            block[i] = y > 0 ? (Register<T>)block[i] : Register<T>{};
            store_register(slopes.at(c / kPanel<T>, b + i) + c % kPanel<T>, (Register<T>)block[i]);
          }
          if (!onward) return;
          grad::transpose<T>(block);
          const int64_t rows = least(kLanes<T>, layer.outputs - c);
          for (int64_t i = 0; i < rows; ++i) {
            store_register(next.at(b / kPanel<T>, c + i) + b % kPanel<T>, (Register<T>)block[i]);
          }
        });
  }

  FASTMEM_INLINE void move(T* weight, T* speed, Register<T> gradient) const {
    Register<T> w = load_register(weight);
    const Register<T> momentum = static_cast<T>(rule_.momentum) - Register<T>{};
    const Register<T> g = fma(static_cast<T>(rule_.weight_decay) - Register<T>{}, w, gradient);
    const Register<T> v = fma(momentum, load_register(speed), g);
    store_register(speed, v);
    w = fma(-rate_ - Register<T>{}, rule_.nesterov ? fma(momentum, v, g) : v, w);
    store_register(weight, w);
  }

  void move_weights(const Layer<T>& layer) {
    const Panels<T> slopes = {slopes_, batch_, layer.outputs};
    for (int64_t panel = 0; panel < slopes.count(); ++panel) {
      with_registers(slopes.registers(panel), [&]<int kRegisters>() {
        int64_t first = 0;
        for (; first + kTileRows <= layer.inputs; first += kTileRows)
          weight_tile<kTileRows, kRegisters>(layer, slopes, panel, first);
        rest_of_weights<kTileRows - 1, kRegisters>(layer, slopes, panel, first);
      });
    }
  }

  template <int kRows, int kRegisters>
  void rest_of_weights(const Layer<T>& layer, const Panels<T>& slopes, int64_t panel,
                       int64_t first) {
    if constexpr (kRows > 0) {
      if (layer.inputs - first == kRows) {
        weight_tile<kRows, kRegisters>(layer, slopes, panel, first);
      } else {
        rest_of_weights<kRows - 1, kRegisters>(layer, slopes, panel, first);
      }
    }
  }

  template <int kRows, int kRegisters>
  FASTMEM_OUT_OF_LINE void weight_tile(const Layer<T>& layer, const Panels<T>& slopes,
                                       int64_t panel, int64_t first) {
    Sums<T, kRows, kRegisters> sums{};
    const T* const* records = layer.inputs_of;
    sums.add(batch_, slopes.at(panel, 0), [&](int64_t t) __attribute__((always_inline)) {
      const T* const record = records[t] + first;
      return [record](int i) __attribute__((always_inline)) { return record[i]; };
    });
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kRegisters; ++j) {
        move(layer.weight.at(panel, first + i) + j * kLanes<T>,
             layer.weight_speed.at(panel, first + i) + j * kLanes<T>, sums.r[i][j]);
      }
    }
  }

  void move_biases(const Layer<T>& layer) {
    const Panels<T> slopes = {slopes_, batch_, layer.outputs};
    for (int64_t panel = 0; panel < slopes.count(); ++panel) {
      for (int64_t j = 0; j < slopes.registers(panel) * kLanes<T>; j += kLanes<T>) {
        Register<T> sum{};
        for (int64_t b = 0; b < batch_; ++b) sum += load_register(slopes.at(panel, b) + j);
        move(layer.bias.at(panel, 0) + j, layer.bias_speed.at(panel, 0) + j, sum);
      }
    }
  }

  const MlpVisit& visit_;
  const MlpRule& rule_;
  Pieces pieces_;
  Layer<T>* layers_;
  int64_t largest_ = 0;
  T* slopes_;     // derivatives by a layer's outputs, one row a record
  T* turned_[2];  // their transposes
  const int64_t* rows_ = nullptr;
  int64_t batch_ = 0;
  T rate_ = 0;
};

template <class T>
int64_t scratch_bytes(const MlpVisit& visit) {
  return Steps<T>(visit, MlpRule{}, nullptr).used();
}

template <class T>
void run(const MlpVisit& visit, const MlpRule& rule, void* scratch) {
  Steps<T>(visit, rule, scratch).run();
}

}  // namespace

extern const MlpKernels mlp_sgd;
const MlpKernels mlp_sgd = {
    {{&scratch_bytes<float>, &run<float>}, {&scratch_bytes<double>, &run<double>}}};

}  // namespace fastmem::cpu::FASTMEM_ISA
