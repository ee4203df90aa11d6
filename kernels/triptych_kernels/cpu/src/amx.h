// AMX tiles: eight registers of up to 16 rows × 64 bytes, and their product.
//
// The compiler knows nothing of what tile instructions read, so loads are fences for it. Tiles and
// their configuration belong to a thread, and libraries beside us use them too: every task
// configures first and assumes nothing about what an earlier task left.
//
// The kernels use six of the eight tiles and rather load one twice. Tiles are renamed like other
// registers, and two hyperthreads share the spare ones: with all eight in use, a core whose other
// thread is busy waits for every load (measured on Sapphire Rapids: 30 ns a product instead of 20;
// alone, 10 either way). Configuring gives all tiles back.
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

// All eight tiles are full: 16 rows of 64 bytes. Rows that nobody needs cost nothing: a product
// takes the same time for one row as for sixteen.
inline void configure_full() {
    static const Config config = [] {
        Config full;
        for (int tile = 0; tile < 8; ++tile) full.row_bytes[tile] = 64, full.rows[tile] = 16;
        return full;
    }();
    asm volatile("" ::: "memory");
    _tile_loadconfig(&config);
}

// Sums in 0-3 are full; left tiles 4, 5 hold 16 rows of 32 bytes, right tiles 6, 7 hold 8 rows:
// a product runs over 32 bytes of K.
inline void configure_half_depth() {
    static const Config config = [] {
        Config half;
        for (int tile = 0; tile < 8; ++tile) half.row_bytes[tile] = 64, half.rows[tile] = 16;
        half.row_bytes[4] = half.row_bytes[5] = 32;
        half.rows[6] = half.rows[7] = 8;
        return half;
    }();
    asm volatile("" ::: "memory");
    _tile_loadconfig(&config);
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
