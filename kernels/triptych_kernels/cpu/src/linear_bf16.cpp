// bfloat16 panels: [K / 32][2][16 pairs of K][16 columns][2], what two AMX tiles want, in sequence.
#include "amx.h"
#include "epilogue.h"
#include "linear.h"

namespace triptych {
namespace {

constexpr int kTile = kRowTile * kBf16Depth;  // values of a tile

// Sums of up to two tiles of rows that still have to be finished.
struct Pending {
    const Linear& linear;
    const Epilogue& to;
    int panel = 0;
    const float* sums = nullptr;  // [rows][32]
    int row = 0, rows = 0, next = 0;

    void set(int of_panel, const float* new_sums, int first_row, int count) {
        panel = of_panel, sums = new_sums, row = first_row, rows = count, next = 0;
    }
    void advance(int count) {
        for (; count > 0 && next < rows; --count, ++next) {
            const float* sum = sums + next * kPanel;
            finish(linear, to, row + next, panel, load(sum), load(sum + kLanes));
        }
    }
};

#if defined(TK_AMX)

// The first walk through a panel reads it from DRAM, across pages that the CPU's own prefetcher
// will not cross.
inline void prefetch(const Bf16* weights) {
    const char* ahead = reinterpret_cast<const char*>(weights) + 6144;
    for (int line = 0; line < 4 * kTile; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
}

// One tile of rows. The sums of the two halves are independent, so that one product can start
// while the other runs. Meanwhile the vector unit, which has nothing to do with it, finishes the
// rows before.
void one_tile(const Bf16* x, const Bf16* weights, int steps, float* sums, Pending& pending) {
    const int rows_a_step = (kRowTile + steps - 1) / steps;
    _tile_zero(0);
    _tile_zero(1);
    for (int step = 0; step < steps; ++step) {
        prefetch(weights);
        TK_TILE_LOAD(4, x, 64);
        TK_TILE_LOAD(5, weights, 64);
        _tile_dpbf16ps(0, 4, 5);
        TK_TILE_LOAD(5, weights + kTile, 64);
        _tile_dpbf16ps(1, 4, 5);
        pending.advance(rows_a_step);
        x += kTile;
        weights += 2 * kTile;
    }
    TK_TILE_STORE(0, sums, kPanel * sizeof(float));
    TK_TILE_STORE(1, sums + kLanes, kPanel * sizeof(float));
}

// Two tiles of rows, `apart` values from one to the next.
template <bool kFirst>
void two_tiles(const Bf16* x, std::size_t apart, const Bf16* weights, int steps, float* sums,
               Pending& pending) {
    const int rows_a_step = (2 * kRowTile + steps - 1) / steps;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int step = 0; step < steps; ++step) {
        if (kFirst) prefetch(weights);
        TK_TILE_LOAD(4, x, 64);
        TK_TILE_LOAD(5, weights, 64);
        _tile_dpbf16ps(0, 4, 5);
        TK_TILE_LOAD(5, weights + kTile, 64);
        _tile_dpbf16ps(1, 4, 5);
        TK_TILE_LOAD(4, x + apart, 64);
        _tile_dpbf16ps(3, 4, 5);
        TK_TILE_LOAD(5, weights, 64);
        _tile_dpbf16ps(2, 4, 5);
        pending.advance(rows_a_step);
        x += kTile;
        weights += 2 * kTile;
    }
    float* lower = sums + kRowTile * kPanel;
    TK_TILE_STORE(0, sums, kPanel * sizeof(float));
    TK_TILE_STORE(1, sums + kLanes, kPanel * sizeof(float));
    TK_TILE_STORE(2, lower, kPanel * sizeof(float));
    TK_TILE_STORE(3, lower + kLanes, kPanel * sizeof(float));
}

#else

constexpr int kRowsAtOnce = 4;

// Without AMX: the same order of K, one product at a time, in float32. Bits differ from AMX's.
void few_rows(const Operand& x, int begin, int rows, const Bf16* weights, float* sums) {
    V sum[kRowsAtOnce][2] = {};
    for (int k = 0; k < x.depth; k += 2) {
        const Bf16* pairs = weights + (k / kBf16Depth) * 2 * kTile + (k % kBf16Depth) * kLanes;
        for (int half = 0; half < 2; ++half, pairs += kTile) {
            VInt both;
            std::memcpy(&both, pairs, sizeof both);
            const V even = (V)(both << 16), odd = (V)(both & ~0xffff);
            for (int row = 0; row < rows; ++row) {
                const Bf16* at = x.half_line(begin + row, k) + k % kBf16Depth;
                sum[row][half] = fma(set1(to_float(at[0])), even, sum[row][half]);
                sum[row][half] = fma(set1(to_float(at[1])), odd, sum[row][half]);
            }
        }
    }
    for (int row = 0; row < rows; ++row) {
        store(sums + row * kPanel, sum[row][0]);
        store(sums + row * kPanel + kLanes, sum[row][1]);
    }
}

#endif

}  // namespace

#if defined(TK_AMX)

void apply_bf16(const Linear& linear, const Operand& x, const Part& part, const Epilogue& to) {
    alignas(64) float sums[2][2 * kRowTile * kPanel];
    Pending pending{linear, to};
    amx::configure_full();
    const int steps = linear.depth / kBf16Depth;
    const std::size_t apart = static_cast<std::size_t>(steps) * kTile;
    int turn = 0;
    for (int panel = part.first; panel < part.last; ++panel) {
        const Bf16* weights = reinterpret_cast<const Bf16*>(linear.panel(panel));
        for (int row = part.begin; row < part.end; row += 2 * kRowTile, turn ^= 1) {
            const Bf16* rows = x.half_line(row, 0);
            const int count = part.end - row < 2 * kRowTile ? part.end - row : 2 * kRowTile;
            if (count <= kRowTile) {
                one_tile(rows, weights, steps, sums[turn], pending);
            } else if (row == part.begin) {
                two_tiles<true>(rows, apart, weights, steps, sums[turn], pending);
            } else {
                two_tiles<false>(rows, apart, weights, steps, sums[turn], pending);
            }
            pending.advance(pending.rows);
            pending.set(panel, sums[turn], row, count);
        }
    }
    pending.advance(pending.rows);
}

#else

void apply_bf16(const Linear& linear, const Operand& x, const Part& part, const Epilogue& to) {
    alignas(64) float sums[kRowsAtOnce * kPanel];
    Pending pending{linear, to};
    for (int panel = part.first; panel < part.last; ++panel) {
        const Bf16* weights = reinterpret_cast<const Bf16*>(linear.panel(panel));
        for (int row = part.begin; row < part.end; row += kRowsAtOnce) {
            const int count = part.end - row < kRowsAtOnce ? part.end - row : kRowsAtOnce;
            few_rows(x, row, count, weights, sums);
            pending.set(panel, sums, row, count);
            pending.advance(count);
        }
    }
}

#endif

}  // namespace triptych
