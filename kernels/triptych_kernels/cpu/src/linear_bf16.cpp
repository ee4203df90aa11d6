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

// Where the tiles of a panel come from, step by step. Each `at` is called with ascending steps.

struct Resident {  // it is in a cache
    const Bf16* weights;
    const Bf16* at(int step) { return weights + step * 2 * kTile; }
};

struct Streamed {  // from DRAM, across pages that the CPU's own prefetcher will not cross
    const Bf16* weights;
    const Bf16* at(int step) {
        const Bf16* tiles = weights + step * 2 * kTile;
        const char* ahead = reinterpret_cast<const char*>(tiles) + 6144;
        for (int line = 0; line < 4 * kTile; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
        return tiles;
    }
};

constexpr int kAhead = 2;  // steps: a product never waits for what was just stored
constexpr int kRing = 4;

struct Unpacked {  // int4 or int8, made a little ahead of its use
    const Linear& linear;
    int panel, steps;
    Bf16* ring;  // [kRing][2 tiles]

    Unpacked(const Linear& of, int index, Bf16* room)
        : linear(of), panel(index), steps(of.depth / kBf16Depth), ring(room) {
        for (int step = 0; step < kAhead && step < steps; ++step) make(step);
    }
    void make(int step) { unpack_step(linear, panel, step, ring + step % kRing * 2 * kTile); }
    const Bf16* at(int step) {
        if (step + kAhead < steps) make(step + kAhead);
        return ring + step % kRing * 2 * kTile;
    }
};

// A panel's weights as a whole, for many rows: valid until the next call in this thread.
const Bf16* whole_panel(const Linear& linear, int panel) {
    if (linear.kind == Kind::kBf16) return reinterpret_cast<const Bf16*>(linear.panel(panel));
    static thread_local Buffer<Bf16> unpacked;
    Bf16* to = unpacked.take(static_cast<std::size_t>(linear.depth) * kPanel);
    for (int step = 0; step < linear.depth / kBf16Depth; ++step) {
        unpack_step(linear, panel, step, to + step * 2 * kTile);
    }
    return to;
}

#if defined(TK_AMX)

// One tile of rows. The sums of the two halves are independent, so that one product can start
// while the other runs. Meanwhile the vector unit, which has nothing to do with it, finishes the
// rows before.
template <class Weights>
void one_tile(const Bf16* x, Weights weights, int steps, float* sums, Pending& pending) {
    const int rows_a_step = (kRowTile + steps - 1) / steps;
    _tile_zero(0);
    _tile_zero(1);
    for (int step = 0; step < steps; ++step, x += kTile) {
        const Bf16* tiles = weights.at(step);
        TK_TILE_LOAD(4, x, 64);
        TK_TILE_LOAD(5, tiles, 64);
        _tile_dpbf16ps(0, 4, 5);
        TK_TILE_LOAD(5, tiles + kTile, 64);
        _tile_dpbf16ps(1, 4, 5);
        pending.advance(rows_a_step);
    }
    TK_TILE_STORE(0, sums, kPanel * sizeof(float));
    TK_TILE_STORE(1, sums + kLanes, kPanel * sizeof(float));
}

// Two tiles of rows, `apart` values from one to the next.
template <class Weights>
void two_tiles(const Bf16* x, std::size_t apart, Weights weights, int steps, float* sums,
               Pending& pending) {
    const int rows_a_step = (2 * kRowTile + steps - 1) / steps;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int step = 0; step < steps; ++step, x += kTile) {
        const Bf16* tiles = weights.at(step);
        TK_TILE_LOAD(4, x, 64);
        TK_TILE_LOAD(5, tiles, 64);
        _tile_dpbf16ps(0, 4, 5);
        TK_TILE_LOAD(5, tiles + kTile, 64);
        _tile_dpbf16ps(1, 4, 5);
        TK_TILE_LOAD(4, x + apart, 64);
        _tile_dpbf16ps(3, 4, 5);
        TK_TILE_LOAD(5, tiles, 64);
        _tile_dpbf16ps(2, 4, 5);
        pending.advance(rows_a_step);
    }
    float* lower = sums + kRowTile * kPanel;
    TK_TILE_STORE(0, sums, kPanel * sizeof(float));
    TK_TILE_STORE(1, sums + kLanes, kPanel * sizeof(float));
    TK_TILE_STORE(2, lower, kPanel * sizeof(float));
    TK_TILE_STORE(3, lower + kLanes, kPanel * sizeof(float));
}

// Up to two tiles of rows.
template <class Weights>
void few_tiles(const Operand& x, int row, int count, Weights weights, float* sums,
               Pending& pending) {
    const int steps = x.depth / kBf16Depth;
    const Bf16* rows = x.half_line(row, 0);
    if (count <= kRowTile) return one_tile(rows, weights, steps, sums, pending);
    two_tiles(rows, static_cast<std::size_t>(steps) * kTile, weights, steps, sums, pending);
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
    alignas(64) Bf16 ring[kRing * 2 * kTile];
    Pending pending{linear, to};
    const int rows = part.end - part.begin;
    amx::configure(rows < kRowTile ? rows : kRowTile);
    const bool on_the_fly = linear.kind != Kind::kBf16 && rows <= 2 * kRowTile;
    int turn = 0;
    for (int panel = part.first; panel < part.last; ++panel) {
        const Bf16* whole = on_the_fly ? nullptr : whole_panel(linear, panel);
        for (int row = part.begin; row < part.end; row += 2 * kRowTile, turn ^= 1) {
            const int count = part.end - row < 2 * kRowTile ? part.end - row : 2 * kRowTile;
            if (on_the_fly) {
                few_tiles(x, row, count, Unpacked(linear, panel, ring), sums[turn], pending);
            } else if (linear.kind == Kind::kBf16 && row == 0) {
                few_tiles(x, row, count, Streamed{whole}, sums[turn], pending);
            } else {
                few_tiles(x, row, count, Resident{whole}, sums[turn], pending);
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
        const Bf16* weights = whole_panel(linear, panel);
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
