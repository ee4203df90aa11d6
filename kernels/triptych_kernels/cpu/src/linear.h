// Packed linear layers: y = x Wᵀ + b, with bits of a row that depend on that row alone.
//
// A weight is packed once into panels of 32 output columns, in the order the kernels read it.
// Every kernel walks K in ascending order with one accumulator per output, whatever the number of
// rows and threads, so a row costs and yields the same beside fifteen others as alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory.h"
#include "simd.h"

namespace triptych {

enum class Kind : int {
    kFloat = 0,  // float32 weights and activations
    kBf16 = 1,   // bfloat16 weights and activations, float32 sums
    kInt4 = 2,   // w = scale·q + low per group, q 4 bits; activations int8 per group, exact sums
    kInt8 = 3,   // the same with q of 8 bits
};

constexpr int kPanel = 32;      // output columns of a panel: two vectors
constexpr int kRowTile = 16;    // rows of a tile of activations
constexpr int kBf16Depth = 32;  // K of a bf16 tile
constexpr int kInt8Depth = 32;  // K of an int8 block: the smallest group

struct Linear {
    Kind kind;
    int in = 0, out = 0;
    int columns = 0;   // of a result: out, or of a gated weight gate and up as they are packed
    int group = 0;     // of int4 and int8: 32, 64 or 128
    int panels = 0;    // ceil(out / kPanel)
    int depth = 0;     // K, rounded up to whole tiles or groups
    std::size_t panel_bytes = 0;
    std::uint8_t* weights = nullptr;  // [panels][panel_bytes]
    float* bias = nullptr;            // [panels × kPanel], or null

    const std::uint8_t* panel(int index) const { return weights + index * panel_bytes; }
    ~Linear() { std::free(weights), std::free(bias); }
};

// Activations in the form that a kernel of the given kind reads. Rows come in tiles of 16; what
// lies in the last tile's unused rows is anything.
struct Operand {
    Kind kind = Kind::kFloat;
    int rows = 0, in = 0, group = 0, depth = 0;
    float* floats = nullptr;      // kFloat: [rows, depth]
    Bf16* halves = nullptr;       // kBf16: [tiles][depth / 32][16][32]
    std::int8_t* bytes = nullptr; // kInt*: [tiles][depth / 32][16][32]
    float* scales = nullptr;      // kInt*: [tiles][groups][2][16]: scale, and scale × sum of bytes

    int tiles() const { return (rows + kRowTile - 1) / kRowTile; }
    int groups() const { return depth / group; }
    Bf16* half_line(int row, int column) const {
        const std::size_t tile = row / kRowTile, block = column / kBf16Depth;
        return halves + ((tile * (depth / kBf16Depth) + block) * kRowTile + row % kRowTile) *
                            kBf16Depth;
    }
};

// Memory of an Operand, kept between calls.
class OperandBuffer {
  public:
    // For `rows` inputs of `linear`. Columns between in and depth are zero.
    Operand& take(const Linear& linear, int rows);

  private:
    Operand operand_;
    Buffer<float> floats_, scales_;
    Buffer<Bf16> halves_;
    Buffer<std::int8_t> bytes_;
};

// Writes row `row` of the operand from float32 values [in].
void put_row(Operand& operand, int row, const float* values);

// What happens to a panel of results. `out` is [rows, stride] float32.
struct Epilogue {
    enum class Action : int { kStore, kAdd, kSiluMul, kGeluMul } action = Action::kStore;
    float* out = nullptr;
    int stride = 0;
    Operand* next = nullptr;  // gated results go straight into this bf16 operand, if given
};

// Row `row` of a weight that is not gated, as float32 [in]: a token embedding.
void copy_row(const Linear& linear, int row, float* to);

// Runs on all threads of the pool.
void apply(const Linear& linear, const Operand& x, const Epilogue& epilogue);

// Kernels, one panel each: rows [begin, end) of x, in tiles of 16.
void panel_float(const Linear&, const Operand&, int panel, int begin, int end, const Epilogue&);
void panel_bf16(const Linear&, const Operand&, int panel, int begin, int end, const Epilogue&);
void panel_affine(const Linear&, const Operand&, int panel, int begin, int end, const Epilogue&);

}  // namespace triptych
