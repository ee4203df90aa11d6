// The paged KV cache, as the kernels see it.
//
// A block holds, layer after layer, keys [kv heads][tokens][head dim], then values transposed,
// [kv heads][head dim][tokens], then, of int8, the scales float32 [2][kv heads][tokens], then what
// tokens are chosen by, index keys [tokens][index dim]: float32, or else bfloat16. Keys and values lie
// the way a tile product wants its left side: no key or value is ever shuffled to be used.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace triptych {

enum class KvType : int { kFloat = 0, kBf16 = 1, kInt8 = 2 };

struct KvCache {
    std::uint8_t* base;
    std::size_t block_bytes, layer_bytes;
    int kv_heads, head_dim, block_tokens;
    KvType type;
    int index_dim;  // 0: no tokens are chosen

    int item_bytes() const {
        return type == KvType::kFloat ? 4 : type == KvType::kBf16 ? 2 : 1;
    }
    std::size_t head_bytes() const {  // keys or values of one head in one block
        return static_cast<std::size_t>(block_tokens) * head_dim * item_bytes();
    }
    std::uint8_t* keys(int layer, int block, int head) const {
        return base + block * block_bytes + layer * layer_bytes + head * head_bytes();
    }
    std::uint8_t* values(int layer, int block, int head) const {
        return keys(layer, block, kv_heads + head);
    }
    // Of int8: one scale a token; keys' first, then values'.
    float* scales(int layer, int block, int which, int head) const {
        return reinterpret_cast<float*>(keys(layer, block, 2 * kv_heads)) +
               (which * kv_heads + head) * block_tokens;
    }
    std::uint8_t* index_keys(int layer, int block) const {
        return type == KvType::kInt8 ? reinterpret_cast<std::uint8_t*>(scales(layer, block, 2, 0))
                                     : keys(layer, block, 2 * kv_heads);
    }
    int index_item_bytes() const { return type == KvType::kFloat ? 4 : 2; }
};

// Writes one position of one head; key and value are float32 [head_dim]. Positions of a part (32
// slots of a block) must be written in order, by one thread: the first one clears the part, so that
// it can be read whole before it is full. What an earlier owner left could be NaN, and NaN × 0 is.
// For the same reason a value that is not finite, even as a bfloat16, is stored as zeros with a key
// of NaN: all rows that see the position become NaN by its score, and no row that must not.
void put_kv(const KvCache& cache, int layer, int block, int head, int offset, const float* key,
            const float* value);

// Copies one position, of all heads and the index, from slot `from` of a sequence's blocks to slot `to`.
void move_kv(const KvCache& cache, int layer, const std::int32_t* blocks, int from, int to);

// Whether parts are read where they lie.
inline bool reads_in_place(const KvCache& cache);

constexpr int kTileTokens = 128;  // positions that softmax looks at in one go, aligned to 0
constexpr int kPartTokens = 32;   // depth of one product of weights and values
constexpr int kParts = kTileTokens / kPartTokens;

// Keys and values of up to 128 positions of one head, where they lie or, where that is not how a
// product can read them, in a copy. T is what the kernels compute with: float or Bf16.
template <class T>
struct KvTile {
    const T* keys[kParts];    // each [32][head_dim]
    const T* values[kParts];  // each [head_dim][value_stride], 32 of a row are used
    int value_stride[kParts];
    int tokens, parts;  // positions that exist, and parts that hold them
    // Of int8: scales of keys and values [128]; null otherwise.
    const float *key_scales, *value_scales;
};

// Room for the copies of one tile.
template <class T>
struct KvScratch {
    explicit KvScratch(int head_dim);
    ~KvScratch();
    KvScratch(const KvScratch&) = delete;
    T *keys, *values;
    float key_scales[kTileTokens], value_scales[kTileTokens];
};

// A sequence's KV in one layer and head: positions [0, end) lie in `blocks`.
struct KvSource {
    const KvCache& cache;
    int layer, head;
    const std::int32_t* blocks;
    int end;
};

class TreeTile;

// Positions [begin, min(begin + 128, limit)), limit ≤ end; zeros behind `end`.
template <class T>
KvTile<T> read_tile(const KvSource& source, int begin, int limit, KvScratch<T>& scratch);

// The same for rows of a tree of drafts, as the tile says.
template <class T>
KvTile<T> read_tree(const KvSource& source, const TreeTile& tree, KvScratch<T>& scratch);

inline bool reads_in_place(const KvCache& cache) {
    return cache.type != KvType::kInt8 && cache.block_tokens % kPartTokens == 0;
}

}  // namespace triptych
