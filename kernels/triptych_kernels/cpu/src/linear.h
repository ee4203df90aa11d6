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
    kInt4 = 2,   // bfloat16 likewise, made on the fly from q of 4 bits: w = scale·q + low per group
    kInt8 = 3,   // the same with q of 8 bits
};

constexpr int kPanel = 32;      // output columns of a panel: two vectors
constexpr int kRowTile = 16;    // rows of a tile of activations
constexpr int kBf16Depth = 32;  // K of a bf16 tile

struct Linear {
    Kind kind;
    int in = 0, out = 0;
    int columns = 0;   // of a result: out, or of a gated weight gate and up as they are packed
    int group = 0;     // of int4 and int8: 32, 64 or 128
    int panels = 0;    // ceil(out / kPanel)
    int depth = 0;     // K, rounded up to whole tiles or groups
    bool finite = true;  // all scales and lows of int4 and int8 are
    std::size_t panel_bytes = 0;
    std::uint8_t* weights = nullptr;  // [panels][panel_bytes]
    float* bias = nullptr;            // [panels × kPanel], or null

    const std::uint8_t* panel(int index) const { return weights + index * panel_bytes; }
    ~Linear() { std::free(weights), std::free(bias); }
};

// Activations in the form that a kernel of the given kind reads. Rows come in tiles of 16; what
// lies in the last tile's unused rows is anything.
struct Operand {
    int rows = 0, in = 0, depth = 0;
    float* floats = nullptr;  // for kFloat: [rows, depth]; else null
    Bf16* halves = nullptr;   // for all others: [tiles][depth / 32][16][32]; else null

    int tiles() const { return (rows + kRowTile - 1) / kRowTile; }
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
    Buffer<float> floats_;
    Buffer<Bf16> halves_;
};

// Writes row `row` of the operand from float32 values [in].
void put_row(Operand& operand, int row, const float* values);

// The same from bfloat16 bits, into an operand of halves whose tail is clear.
void put_row(Operand& operand, int row, const Bf16* values);

// Zeros the row's columns from the last whole block of inputs to its end.
void clear_tail(Operand& operand, int row);

// Where a row of results goes that lies apart from its neighbours.
struct Target {
    void* row;  // float32 [out], or bfloat16
    bool halves;
};

// What happens to a panel of results. `out` is [rows, stride] float32.
struct Epilogue {
    enum class Action : int {
        kStore,
        kAdd,
        kSiluMul,
        kGeluMul,
        kClampedSwiglu,
        kScatter,  // each row to its target
    } action = Action::kStore;
    float* out = nullptr;
    int stride = 0;
    Operand* next = nullptr;  // gated results go straight into this operand of halves, if given
    const Target* targets = nullptr;  // of kScatter: [rows]
};

// Row `row` of a weight that is not gated, as float32 [in]: a token embedding.
void copy_row(const Linear& linear, int row, float* to);

// Runs on all threads of the pool.
void apply(const Linear& linear, const Operand& x, const Epilogue& epilogue);

// A rectangle of results: panels [first, last) of rows [begin, end); begin is a multiple of 16.
struct Part {
    int first, last, begin, end;
};

void apply_float(const Linear& linear, const Operand& x, const Part& part, const Epilogue& to);
void apply_bf16(const Linear& linear, const Operand& x, const Part& part, const Epilogue& to);

// A group's half of a panel (16 columns) of int4 or int8: scales [16] and lows [16] in half
// precision, then its blocks of 32 K. Inside a block, 16 lanes are 8 columns × 2 neighbours in K, the
// order in which a tile wants them: vectors X hold columns 0-7, Y columns 8-15.
//   int4: for each half of the 16 pairs, X and Y of 32-bit lanes: nibble p is of pair p in that half
//   int8: for each pair, X and Y of 8-bit lanes
constexpr int kScaleBytes = 64;

inline int block_bytes(Kind kind) { return kBf16Depth * (kind == Kind::kInt4 ? 8 : 16); }

inline std::size_t half_bytes(const Linear& linear) {
    return kScaleBytes + static_cast<std::size_t>(linear.group / kBf16Depth) *
                             block_bytes(linear.kind);
}

// Where q of a column (0-15) lies in a block; of int4, in which nibble of the byte.
struct Place {
    int byte, nibble;
};

inline Place place_of(Kind kind, int column, int k) {
    const int pair = k / 2, lane = column % 8 * 2 + k % 2, upper = column / 8;
    if (kind == Kind::kInt8) return {pair * 32 + upper * 16 + lane, 0};
    return {pair / 8 * 128 + upper * 64 + lane * 4 + pair % 8 / 2, pair % 2};
}

// 32 K of an int4 or int8 panel as the two tiles of a bfloat16 panel: each weight is
// fma(scale, q, low), rounded.
void unpack_step(const Linear& linear, int panel, int step, Bf16* tiles);

#if !defined(__AVX512F__)
constexpr int kFewRows = 4;

// Sums [rows][32] of up to kFewRows rows x [rows][depth]; int4 or int8 that is finite. The bits are
// those of unpacked weights.
void sum_few_rows(const Linear& linear, int panel, const float* x, int rows, float* sums);
#endif

}  // namespace triptych
