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
    int panel;
    const float* sums = nullptr;  // [rows][32]
    int row = 0, rows = 0, next = 0;

    void set(const float* new_sums, int first_row, int count) {
        sums = new_sums, row = first_row, rows = count, next = 0;
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
// while the other runs.
void one_tile(const Bf16* x, const Bf16* weights, int steps, float* sums) {
    _tile_zero(0);
    _tile_zero(1);
    for (int step = 0; step < steps; ++step) {
        prefetch(weights);
        TK_TILE_LOAD(4, x, 64);
        TK_TILE_LOAD(5, weights, 64);
        _tile_dpbf16ps(0, 4, 5);
        TK_TILE_LOAD(5, weights + kTile, 64);
        _tile_dpbf16ps(1, 4, 5);
        x += kTile;
        weights += 2 * kTile;
    }
    TK_TILE_STORE(0, sums, kPanel * sizeof(float));
    TK_TILE_STORE(1, sums + kLanes, kPanel * sizeof(float));
}

// Two tiles of rows, `apart` values from one to the next. Meanwhile
// the vector unit, which has nothing to do with it, finishes the rows before.
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

// Without AMX: the same order of K, one product at a time, in float32. Bits differ from AMX's.
void few_rows(const Operand& x, int begin, int rows, const Bf16* weights, float* sums) {
    V sum[4][2] = {};
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

void panel_bf16(const Linear& linear, const Operand& x, int panel, int begin, int end,
                const Epilogue& to) {
    const Bf16* weights = reinterpret_cast<const Bf16*>(linear.panel(panel));
    alignas(64) float sums[2][2 * kRowTile * kPanel];
    Pending pending{linear, to, panel};
#if defined(TK_AMX)
    amx::configure_full();
    const int steps = linear.depth / kBf16Depth;
    const std::size_t apart = static_cast<std::size_t>(steps) * kTile;
    for (int turn = 0; begin < end; turn ^= 1) {
        const Bf16* rows = x.half_line(begin, 0);
        const int count = end - begin < 2 * kRowTile ? end - begin : 2 * kRowTile;
        if (count > kRowTile && begin == 0) {
            two_tiles<true>(rows, apart, weights, steps, sums[turn], pending);
        } else if (count > kRowTile) {
            two_tiles<false>(rows, apart, weights, steps, sums[turn], pending);
        } else {
            one_tile(rows, weights, steps, sums[turn]);
        }
        pending.advance(pending.rows);
        pending.set(sums[turn], begin, count);
        begin += count;
    }
    pending.advance(pending.rows);
#else
    for (; begin < end; begin += 4) {
        const int count = end - begin < 4 ? end - begin : 4;
        few_rows(x, begin, count, weights, sums[0]);
        pending.set(sums[0], begin, count);
        pending.advance(count);
    }
#endif
}

}  // namespace triptych
