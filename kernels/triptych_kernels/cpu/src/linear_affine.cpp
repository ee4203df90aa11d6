// int4 and int8 panels: w = scale·q + low per group of K, times activations of int8 per group.
//
// A panel is, group after group and for each half of 16 columns: scales [16] and lows [16] in half
// precision, then blocks of 32 K, as 8 rows of [16 columns][4 of K] bytes; of 4 bits, row i lies in
// the low nibbles of its vector and row i + 4 in the high ones.
//
// Inside a group everything is whole numbers and exact, so each CPU may multiply as it can. The
// groups are then added in ascending order, two rounded steps each, the same everywhere:
//     sum = fma(dot, scale·s, sum), sum = fma(low, t, sum), s the row's scale, t = s·Σx.
#include "amx.h"
#include "epilogue.h"
#include "linear.h"

namespace triptych {
namespace {

constexpr int kRowsOfBlock = 8;
constexpr int kBlock = kRowsOfBlock * 64;  // bytes of an unpacked block of one half
constexpr int kScales = 64;                // bytes of scales and lows

struct Panel {
    const std::uint8_t* bytes;
    bool packed;  // 4 bits
    int groups, blocks;  // of a row, of a group

    std::size_t half_bytes() const { return kScales + blocks * (packed ? kBlock / 2 : kBlock); }
    // Scales and lows of a group's half; its blocks lie behind.
    const std::uint8_t* scales(int group, int half) const {
        return bytes + (group * 2 + half) * half_bytes();
    }
};

inline VInt load_bytes(const std::uint8_t* from) {
    VInt value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline VInt row_of(const std::uint8_t* block, bool packed, int row) {
    if (!packed) return load_bytes(block + row * 64);
    const VInt both = load_bytes(block + (row % 4) * 64);
    const VInt nibbles = row < 4 ? both : (both >> 4);
    return nibbles & 0x0f0f0f0f;
}

// sum + Σ over the four bytes of each lane of w (unsigned) × x (signed, the same four for all).
inline VInt dot4(VInt sum, VInt w, std::int32_t x) {
#if defined(__AVX512VNNI__)
    return (VInt)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
#else
    const __m256i four = _mm256_set1_epi32(x);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8);
    const __m256i odd = _mm256_srai_epi16(four, 8);
    __m256i s[2], b[2];
    std::memcpy(s, &sum, 64);
    std::memcpy(b, &w, 64);
    for (int i = 0; i < 2; ++i) {
        const __m256i low = _mm256_and_si256(b[i], _mm256_set1_epi16(0xff));
        const __m256i high = _mm256_srli_epi16(b[i], 8);
        const __m256i pair =
            _mm256_add_epi32(_mm256_madd_epi16(low, even), _mm256_madd_epi16(high, odd));
        s[i] = _mm256_add_epi32(s[i], pair);
    }
    std::memcpy(&sum, s, 64);
    return sum;
#endif
}

inline V add_group(V sum, VInt dot, V scale, V low, float s, float t) {
    return fma(low, set1(t), fma(from_int(dot), scale * set1(s), sum));
}

const float* row_scales(const Operand& x, int row, int group) {
    const std::size_t tile = row / kRowTile;
    return x.scales + (tile * x.groups() + group) * 2 * kRowTile + row % kRowTile;
}

const std::int8_t* row_bytes(const Operand& x, int row, int block) {
    const std::size_t tile = row / kRowTile, blocks = x.depth / kInt8Depth;
    return x.bytes + ((tile * blocks + block) * kRowTile + row % kRowTile) * kInt8Depth;
}

// A few rows share a walk through the weights.
template <int kRows, bool kPacked>
void few_rows(const Linear& linear, const Operand& x, const Panel& panel, int index, int begin,
              const Epilogue& to) {
    V sum[kRows][2] = {};
    for (int group = 0; group < panel.groups; ++group) {
        for (int half = 0; half < 2; ++half) {
            const std::uint8_t* at = panel.scales(group, half);
            const V scale = load_f16(reinterpret_cast<const std::uint16_t*>(at));
            const V low = load_f16(reinterpret_cast<const std::uint16_t*>(at + 32));
            const std::uint8_t* block = at + kScales;
            VInt dot[kRows][2] = {};  // two chains: a product waits for the one before it
            for (int b = 0; b < panel.blocks; ++b, block += kPacked ? kBlock / 2 : kBlock) {
                for (int line = 0; line < (kPacked ? kBlock / 2 : kBlock); line += 64) {
                    _mm_prefetch(reinterpret_cast<const char*>(block) + 4096 + line, _MM_HINT_T0);
                }
                for (int r = 0; r < kRowsOfBlock; ++r) {
                    const VInt w = row_of(block, kPacked, r);
                    for (int row = 0; row < kRows; ++row) {
                        const std::int8_t* bytes =
                            row_bytes(x, begin + row, group * panel.blocks + b) + r * 4;
                        std::int32_t four;
                        std::memcpy(&four, bytes, 4);
                        dot[row][r & 1] = dot4(dot[row][r & 1], w, four);
                    }
                }
            }
            for (int row = 0; row < kRows; ++row) {
                const float* s = row_scales(x, begin + row, group);
                sum[row][half] = add_group(sum[row][half], dot[row][0] + dot[row][1], scale, low,
                                           s[0], s[kRowTile]);
            }
        }
    }
    for (int row = 0; row < kRows; ++row) {
        finish(linear, to, begin + row, index, sum[row][0], sum[row][1]);
    }
}

template <bool kPacked>
void rows_of(const Linear& linear, const Operand& x, const Panel& panel, int index, int begin,
             int end, const Epilogue& to) {
    for (; end - begin >= 4; begin += 4) few_rows<4, kPacked>(linear, x, panel, index, begin, to);
    for (; end - begin >= 2; begin += 2) few_rows<2, kPacked>(linear, x, panel, index, begin, to);
    if (end > begin) few_rows<1, kPacked>(linear, x, panel, index, begin, to);
}

#if defined(TK_AMX)

constexpr int kRowsAtOnce = 128;  // whose sums are kept until both halves are there
constexpr int kFewRows = 4;       // up to here the vector unit keeps up with memory

// The blocks of one half, unpacked one behind the other.
const std::uint8_t* unpack(const Panel& panel, int half, std::uint8_t* to) {
    std::uint8_t* const begin = to;
    for (int group = 0; group < panel.groups; ++group) {
        const std::uint8_t* block = panel.scales(group, half) + kScales;
        for (int b = 0; b < panel.blocks; ++b, block += kBlock / 2) {
            for (int line = 0; line < kBlock / 2; line += 64) {
                _mm_prefetch(reinterpret_cast<const char*>(block) + 4096 + line, _MM_HINT_T0);
            }
            for (int r = 0; r < kRowsOfBlock; ++r, to += 64) {
                const VInt row = row_of(block, true, r);
                std::memcpy(to, &row, 64);
            }
        }
    }
    return begin;
}

// One tile of rows times one half of the panel. blocks: unpacked, `stride` bytes from group to
// group.
void tile_of(const Operand& x, const Panel& panel, int half, int tile, const std::uint8_t* blocks,
             std::size_t stride, float* sums) {
    const std::int8_t* bytes = row_bytes(x, tile * kRowTile, 0);
    const float* s = row_scales(x, tile * kRowTile, 0);
    V sum[kRowTile] = {};
    alignas(64) std::int32_t dots[kRowTile][kLanes];
    for (int group = 0; group < panel.groups; ++group) {
        _tile_zero(0);
        for (int b = 0; b < panel.blocks; ++b, bytes += kRowTile * kInt8Depth) {
            TK_TILE_LOAD(4, bytes, kInt8Depth);
            TK_TILE_LOAD(6, blocks + b * kBlock, 64);
            _tile_dpbsud(0, 4, 6);
        }
        TK_TILE_STORE(0, dots, 64);
        const std::uint8_t* at = panel.scales(group, half);
        const V scale = load_f16(reinterpret_cast<const std::uint16_t*>(at));
        const V low = load_f16(reinterpret_cast<const std::uint16_t*>(at + 32));
        for (int row = 0; row < kRowTile; ++row) {
            VInt dot;
            std::memcpy(&dot, dots[row], sizeof dot);
            sum[row] = add_group(sum[row], dot, scale, low, s[row], s[row + kRowTile]);
        }
        blocks += stride;
        s += 2 * kRowTile;
    }
    for (int row = 0; row < kRowTile; ++row) store(sums + row * kPanel, sum[row]);
}

void many_rows(const Linear& linear, const Operand& x, const Panel& panel, int index, int begin,
               int end, const Epilogue& to) {
    static thread_local Buffer<std::uint8_t> unpacked;
    static thread_local Buffer<float> all_sums;
    amx::configure_half_depth();
    std::uint8_t* const room = unpacked.take(static_cast<std::size_t>(linear.depth) * kLanes);
    float* const sums = all_sums.take(kRowsAtOnce * kPanel);
    for (; begin < end; begin += kRowsAtOnce) {
        const int count = end - begin < kRowsAtOnce ? end - begin : kRowsAtOnce;
        for (int half = 0; half < 2; ++half) {
            const std::uint8_t* blocks =
                panel.packed ? unpack(panel, half, room) : panel.scales(0, half) + kScales;
            const std::size_t stride =
                panel.packed ? panel.blocks * kBlock : 2 * panel.half_bytes();
            for (int row = 0; row < count; row += kRowTile) {
                tile_of(x, panel, half, (begin + row) / kRowTile, blocks, stride,
                        sums + row * kPanel + half * kLanes);
            }
        }
        for (int row = 0; row < count; ++row) {
            const float* sum = sums + row * kPanel;
            finish(linear, to, begin + row, index, load(sum), load(sum + kLanes));
        }
    }
}

#endif

}  // namespace

void apply_affine(const Linear& linear, const Operand& x, const Part& part, const Epilogue& to) {
    const bool packed = linear.kind == Kind::kInt4;
    for (int index = part.first; index < part.last; ++index) {
        const Panel panel{linear.panel(index), packed, linear.depth / linear.group,
                          linear.group / kInt8Depth};
#if defined(TK_AMX)
        if (part.end - part.begin > kFewRows) {
            many_rows(linear, x, panel, index, part.begin, part.end, to);
            continue;
        }
#endif
        if (packed) {
            rows_of<true>(linear, x, panel, index, part.begin, part.end, to);
        } else {
            rows_of<false>(linear, x, panel, index, part.begin, part.end, to);
        }
    }
}

}  // namespace triptych
