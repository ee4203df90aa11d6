// bfloat16 panels: [K / 32][2][16 pairs of K][16 columns][2], what two AMX tiles want, in sequence.
#include <algorithm>

#include "amx.h"
#include "epilogue.h"
#include "linear.h"
#include "products.h"

namespace triptych {
namespace {

constexpr int kTile = kRowTile * kBf16Depth;  // values of a tile

// Sums of up to a tile of rows that still have to be finished.
struct Pending {
    const Linear& linear;
    const Epilogue& to;
    int panel = 0;
    const float* sums = nullptr;  // [rows][32]
    int row = 0, rows = 0, next = 0;

    void set(int of_panel, const float* new_sums, int first_row, int count) {
        panel = of_panel, sums = new_sums, row = first_row, rows = count, next = 0;
        if (to.out == nullptr) return;
        const float* out = to.out + static_cast<std::size_t>(row) * to.stride + panel * kPanel;
        for (int i = 0; i < rows; ++i, out += to.stride) {
            __builtin_prefetch(out, 1);
            __builtin_prefetch(out + kLanes, 1);
        }
    }
    void advance(int count) {
        for (; count > 0 && next < rows; --count, ++next) {
            const float* sum = sums + next * kPanel;
            finish(linear, to, row + next, panel, load(sum), load(sum + kLanes));
        }
    }
};

#if defined(TK_AMX)

// K of a pass over many rows, in steps: so much of a panel (24 KiB), a tile of activations that
// streams by and the sums fit into the first-level cache together. In between sums wait in memory,
// unrounded, so passes do not show in a bit.
constexpr int kStepsOfPass = 12;

int steps_of_pass(int rows, int steps) {
    if (rows <= kRowTile) return steps;
    const int passes = (steps + kStepsOfPass - 1) / kStepsOfPass;
    return (steps + passes - 1) / passes;
}

// Where the tiles of a panel come from, step by step. Each `at` is called with ascending steps.

struct Resident {  // it is in a cache
    const Bf16* weights;
    int mask;  // of a step, for its place
    const char* ahead;
    int bytes_a_step;  // to prefetch

    const Bf16* at(int step) {
        for (int line = 0; line < bytes_a_step; line += 64) {
            _mm_prefetch(ahead + line, _MM_HINT_T1);
        }
        ahead += bytes_a_step;
        return weights + (step & mask) * 2 * kTile;
    }
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
constexpr int kRingOfPass = 16;
static_assert(kRingOfPass >= kStepsOfPass + kAhead);

struct Unpacked {  // int4 or int8, made a little ahead of its use
    const Linear& linear;
    int panel, steps, mask;
    Bf16* room;  // a ring of steps, [mask + 1][2 tiles]

    Unpacked(const Linear& of, int index, Bf16* to, int slots)
        : linear(of), panel(index), steps(of.depth / kBf16Depth), mask(slots - 1), room(to) {
        for (int step = 0; step < kAhead && step < steps; ++step) make(step);
    }
    Bf16* place(int step) const { return room + (step & mask) * 2 * kTile; }
    void make(int step) { unpack_step(linear, panel, step, place(step)); }
    const Bf16* at(int step) {
        if (step + kAhead < steps) make(step + kAhead);
        return place(step);
    }
};

// Steps [first, last) of a tile of rows: sums [16][32] from zero, or from where they are. The sums
// of the two halves are independent, so that one product can start while the other runs.
// Meanwhile the vector unit, which has nothing to do with it, finishes the rows before.
template <class Weights>
void one_tile(const Bf16* x, Weights& weights, int first, int last, float* sums,
              Pending& pending) {
    const int rows_a_step = (kRowTile + last - first - 1) / (last - first);
    if (first == 0) {
        _tile_zero(0);
        _tile_zero(1);
    } else {
        TK_TILE_LOAD(0, sums, kPanel * sizeof(float));
        TK_TILE_LOAD(1, sums + kLanes, kPanel * sizeof(float));
    }
    for (int step = first; step < last; ++step) {
        const Bf16* tiles = weights.at(step);
        TK_TILE_LOAD(4, x + step * kTile, 64);
        TK_TILE_LOAD(5, tiles, 64);
        _tile_dpbf16ps(0, 4, 5);
        TK_TILE_LOAD(5, tiles + kTile, 64);
        _tile_dpbf16ps(1, 4, 5);
        pending.advance(rows_a_step);
    }
    pending.advance(kRowTile);
    TK_TILE_STORE(0, sums, kPanel * sizeof(float));
    TK_TILE_STORE(1, sums + kLanes, kPanel * sizeof(float));
}

#else

constexpr int kRowBlock = 64;  // rows whose activations are floats at a time: they stay in L2

// A panel's weights as a whole: valid until the next call in this thread.
const Bf16* whole_panel(const Linear& linear, int panel) {
    if (linear.kind == Kind::kBf16) return reinterpret_cast<const Bf16*>(linear.panel(panel));
    static thread_local Buffer<Bf16> unpacked;
    Bf16* to = unpacked.take(static_cast<std::size_t>(linear.depth) * kPanel);
    for (int step = 0; step < linear.depth / kBf16Depth; ++step) {
        unpack_step(linear, panel, step, to + step * 2 * kTile);
    }
    return to;
}

// Rows [begin, end) as float32 [rows][depth]: broadcasting a float costs nothing but a load.
const float* as_floats(const Operand& x, int begin, int end) {
    static thread_local Buffer<float> memory;
    float* const floats = memory.take(static_cast<std::size_t>(kRowBlock) * x.depth);
    float* to = floats;
    for (int row = begin; row < end; ++row) {
        for (int k = 0; k < x.depth; k += kLanes, to += kLanes) {
            store(to, load(x.half_line(row, k) + k % kBf16Depth));
        }
    }
    return floats;
}

// A panel whose weights need not be written down before they are used; false: they do.
bool in_one_go(const Linear& linear, const Epilogue& to, const float* x, int begin, int end,
               int panel) {
#if defined(__AVX512F__)
    return false;
#else
    if (linear.kind == Kind::kBf16 || !linear.finite || end - begin > kFewRows) return false;
    alignas(64) float sums[kFewRows * kPanel];
    sum_few_rows(linear, panel, x, end - begin, sums);
    Pending pending{linear, to};
    pending.set(panel, sums, begin, end - begin);
    pending.advance(end - begin);
    return true;
#endif
}

// Without AMX: the same order of K, one product at a time, in float32. Bits differ from AMX's.
struct Bf16Rows {
    const Linear& linear;
    const Epilogue& to;
    const float* x;  // [rows][depth] from row `first`
    int first, panel;
    const Bf16* weights;

    template <int kRows, bool kWhole>
    void rows(int begin) const {
        alignas(64) float sums[kRows * kPanel];
        for (int half = 0; half < 2; half += kWhole ? 2 : 1) {
            columns<kRows, (kWhole ? kPanel : kLanes) / kRegLanes>(begin, half, sums);
        }
        Pending pending{linear, to};
        pending.set(panel, sums, begin, kRows);
        pending.advance(kRows);
    }

    template <int kRows, int kRegs>
    void columns(int begin, int half, float* to_sums) const {
        constexpr int kPerHalf = kLanes / kRegLanes;
        const float* at = x + static_cast<std::size_t>(begin - first) * linear.depth;
        const Bf16* tile = weights + half * kTile;
        Sums<kRows, kRegs> sums;
        for (int k = 0; k < linear.depth; k += kBf16Depth, tile += 2 * kTile) {
            for (int pair = 0; pair < kBf16Depth / 2; ++pair) {
                RegInt both[kRegs];
                Reg values[kRegs];
                for (int i = 0; i < kRegs; ++i) {
                    const Bf16* from = tile + i / kPerHalf * kTile + pair * 2 * kLanes;
                    both[i] = reg_pairs(from + i % kPerHalf * 2 * kRegLanes);
                    _mm_prefetch(reinterpret_cast<const char*>(from) + 8192, _MM_HINT_T0);
                }
                for (int i = 0; i < kRegs; ++i) values[i] = first_of(both[i]);
                sums.add(at + k + 2 * pair, linear.depth, values);
                for (int i = 0; i < kRegs; ++i) values[i] = second_of(both[i]);
                sums.add(at + k + 2 * pair + 1, linear.depth, values);
            }
        }
        sums.store(to_sums + half * kLanes, kPanel);
    }
};

#endif

}  // namespace

#if defined(TK_AMX)

namespace {

// All rows of the part in one panel. `first_reader`, if given, puts the weights where `reader` will
// find them, for the first tile of rows.
template <class FirstReader>
void apply_panel(const Operand& x, const Part& part, int panel, FirstReader* first_reader,
                 Resident reader, float* sums, Pending& pending) {
    const int rows = part.end - part.begin, steps = x.depth / kBf16Depth;
    const int length = steps_of_pass(rows, steps), tiles = (rows + kRowTile - 1) / kRowTile;
    // All tiles of rows together bring the pass that follows into the cache.
    reader.bytes_a_step = first_reader == nullptr ? (4 * kTile / 64 + tiles - 1) / tiles * 64 : 0;
    for (int first = 0, last; first < steps; first = last) {
        last = std::min(steps, first + length);
        reader.ahead = reinterpret_cast<const char*>(reader.weights + last * 2 * kTile);
        for (int row = 0; row < rows; row += kRowTile) {
            const Bf16* tile = x.half_line(part.begin + row, 0);
            float* own = sums + row * kPanel;
            if (row == 0 && first_reader != nullptr) {
                one_tile(tile, *first_reader, first, last, own, pending);
            } else {
                one_tile(tile, reader, first, last, own, pending);
            }
            if (last < steps) continue;
            pending.set(panel, own, part.begin + row, std::min(rows - row, kRowTile));
        }
    }
}

}  // namespace

void apply_bf16(const Linear& linear, const Operand& x, const Part& part, const Epilogue& to) {
    static thread_local Buffer<float> memory;
    alignas(64) Bf16 ring[kRingOfPass * 2 * kTile];
    Pending pending{linear, to};
    const int rows = part.end - part.begin, slots = rows <= kRowTile ? kRing : kRingOfPass;
    float* sums = memory.take(static_cast<std::size_t>(rows + kRowTile) * kPanel);
    amx::configure(std::min(rows, kRowTile));
    for (int panel = part.first; panel < part.last; ++panel) {
        if (linear.kind == Kind::kBf16) {
            Streamed streamed{reinterpret_cast<const Bf16*>(linear.panel(panel))};
            apply_panel(x, part, panel, rows <= kRowTile ? &streamed : nullptr,
                        {streamed.weights, ~0, nullptr, 0}, sums, pending);
        } else {
            Unpacked unpacked(linear, panel, ring, slots);
            apply_panel(x, part, panel, &unpacked, {ring, slots - 1, nullptr, 0}, sums, pending);
        }
    }
    pending.advance(kRowTile);
}

#else

void apply_bf16(const Linear& linear, const Operand& x, const Part& part, const Epilogue& to) {
    for (int begin = part.begin; begin < part.end; begin += kRowBlock) {
        const int end = std::min(part.end, begin + kRowBlock);
        const float* floats = as_floats(x, begin, end);
        for (int panel = part.first; panel < part.last; ++panel) {
            if (in_one_go(linear, to, floats, begin, end, panel)) continue;
            const Bf16* weights = whole_panel(linear, panel);
            in_few_rows(begin, end, Bf16Rows{linear, to, floats, begin, panel, weights});
        }
    }
}

#endif

}  // namespace triptych
