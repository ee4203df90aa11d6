// AMX tiles: eight registers of up to 16 rows × 64 bytes, and their product.
//
// The compiler knows nothing of what tile instructions read, so loads are fences for it. Tiles and
// their configuration belong to a thread, and libraries beside us use them too: every task
// configures first and assumes nothing about what an earlier task left.
//
// The kernels use four of the eight tiles and rather load one twice. Tiles are renamed like other
// registers, and two hyperthreads share the spare ones: the fewer are live, the more loads can be
// under way on a core whose other thread is busy. A product and its loads take 14 ns there with four
// live tiles, 18 with six, 24-35 with eight, and 6.5 on a core of its own (Sapphire Rapids).
// Configuring gives all tiles back; it takes 150 ns.
#pragma once

#if defined(__AMX_BF16__)
#define TK_AMX 1

#include <immintrin.h>

#include <cstdint>

namespace triptych::amx {

// The operand of ldtilecfg.
struct alignas(64) Config {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

// Right tiles 5-7 are full: 16 rows of 64 bytes. Sums 0-3 and the left tile 4 have `rows` rows, since
// a load takes its time for each of them, and a product does not.
inline void configure(int rows) {
    Config config;
    for (int tile = 0; tile < 8; ++tile) {
        config.row_bytes[tile] = 64;
        config.rows[tile] = static_cast<std::uint8_t>(tile < 5 ? rows : 16);
    }
    // Not the intrinsic: GCC 12 believes that it reads 8 bytes, and drops the stores of the others.
    asm volatile("ldtilecfg %0" ::"m"(config));
}

// Macros, because a tile's number is part of the instruction.
#define TK_TILE_LOAD(tile, from, stride)  \
    do {                                  \
        asm volatile("" ::: "memory");    \
        _tile_loadd(tile, from, stride);  \
    } while (false)
#define TK_TILE_STORE(tile, to, stride)   \
    do {                                  \
        _tile_stored(tile, to, stride);   \
        asm volatile("" ::: "memory");    \
    } while (false)

}  // namespace triptych::amx

#endif
