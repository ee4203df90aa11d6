// Included in front of every file of llama.cpp. GCC 12 declares that _tile_loadconfig reads
// eight bytes, drops the stores of the other 56, and llama.cpp dies of an illegal instruction.
#pragma once

#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
struct triptych_tile_config {
    unsigned char bytes[64];
};
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg %0" ::"m"(*(const struct triptych_tile_config*)(config)))
#endif
