#include "kv_cache.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "attention_tree.h"
#include "memory.h"

namespace triptych {
namespace {

void put_bf16(const float* from, int count, Bf16* to) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    if (i == count) return;
    float lanes[kLanes] = {};
    std::memcpy(lanes, from + i, (count - i) * sizeof(float));
    Bf16 halves[kLanes];
    store(halves, load(lanes));
    std::memcpy(to + i, halves, (count - i) * sizeof(Bf16));
}

// The largest |x|; NaN if there is one: as integers, sizes have the same order and it is above all.
float largest_of(const float* from, int count) {
    std::uint32_t largest = 0;
    for (int i = 0; i < count; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, from + i, sizeof bits);
        largest = std::max(largest, bits & 0x7fffffff);
    }
    float size;
    std::memcpy(&size, &largest, sizeof size);
    return size;
}

// Symmetric, to nearest even. Returns the scale.
float put_int8(const float* from, int count, std::int8_t* to) {
    const float largest = largest_of(from, count);
    const float scale = largest / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
    for (int i = 0; i < count; i += kLanes) {
        float lanes[kLanes] = {};
        std::memcpy(lanes, from + i, std::min(kLanes, count - i) * sizeof(float));
        const VInt whole = to_int(round_whole(load(lanes) * set1(inverse)));
        for (int lane = 0; lane < std::min(kLanes, count - i); ++lane) to[i + lane] = whole[lane];
    }
    return scale;
}

template <class T>
void scatter(const T* from, int count, T* to, int stride) {
    for (int i = 0; i < count; ++i) to[static_cast<std::size_t>(i) * stride] = from[i];
}

constexpr int kMaxHeadDim = 512;
constexpr float kLargestBf16 = 0x1.fep127f;

// int8 values are whole numbers up to 127: exact in bfloat16.
template <class T, class Stored>
T convert(Stored value) {
    if constexpr (std::is_same_v<Stored, T>) {
        return value;
    } else {
        const float wide = value;
        std::uint32_t bits;
        std::memcpy(&bits, &wide, sizeof bits);
        return static_cast<T>(bits >> 16);
    }
}

// Copies `count` positions from `position` on, which lie in one block, to place `to` of the scratch.
template <class T, class Stored>
void copy_run(const KvSource& from, int position, int count, int to, KvScratch<T>& scratch) {
    const KvCache& cache = from.cache;
    const int dim = cache.head_dim, tokens = cache.block_tokens;
    const int block = from.blocks[position / tokens], offset = position % tokens;
    const auto* keys =
        reinterpret_cast<const Stored*>(cache.keys(from.layer, block, from.head)) + offset * dim;
    const auto* values =
        reinterpret_cast<const Stored*>(cache.values(from.layer, block, from.head)) + offset;
    T* to_keys = scratch.keys + to * dim;
    T* to_values = scratch.values + to / kPartTokens * kPartTokens * dim + to % kPartTokens;
    for (int i = 0; i < count * dim; ++i) to_keys[i] = convert<T>(keys[i]);
    for (int d = 0; d < dim; ++d) {
        for (int t = 0; t < count; ++t) {
            to_values[d * kPartTokens + t] = convert<T>(values[d * tokens + t]);
        }
    }
    if (cache.type == KvType::kInt8) {
        const std::size_t bytes = count * sizeof(float);
        std::memcpy(scratch.key_scales + to,
                    cache.scales(from.layer, block, 0, from.head) + offset, bytes);
        std::memcpy(scratch.value_scales + to,
                    cache.scales(from.layer, block, 1, from.head) + offset, bytes);
    }
}

template <class T>
void copy_run(const KvSource& from, int position, int count, int to, KvScratch<T>& scratch) {
    if constexpr (std::is_same_v<T, Bf16>) {
        if (from.cache.type == KvType::kInt8) {
            return copy_run<T, std::int8_t>(from, position, count, to, scratch);
        }
    }
    copy_run<T, T>(from, position, count, to, scratch);
}

template <class T>
void clear_part(int part, int dim, KvScratch<T>& scratch) {
    const std::size_t first = part * kPartTokens, bytes = sizeof(T) * kPartTokens * dim;
    std::memset(scratch.keys + first * dim, 0, bytes);
    std::memset(scratch.values + first * dim, 0, bytes);
    std::memset(scratch.key_scales + first, 0, kPartTokens * sizeof(float));
    std::memset(scratch.value_scales + first, 0, kPartTokens * sizeof(float));
}

template <class T>
void point_at_scratch(KvTile<T>& tile, int part, int dim, const KvScratch<T>& scratch) {
    tile.keys[part] = scratch.keys + part * kPartTokens * dim;
    tile.values[part] = scratch.values + part * kPartTokens * dim;
    tile.value_stride[part] = kPartTokens;
}

template <class T>
KvTile<T> empty_tile(const KvSource& source, int begin, int limit, const KvScratch<T>& scratch) {
    KvTile<T> tile;
    tile.tokens = std::min(kTileTokens, limit - begin);
    tile.parts = (tile.tokens + kPartTokens - 1) / kPartTokens;
    const bool int8 = source.cache.type == KvType::kInt8;
    tile.key_scales = int8 ? scratch.key_scales : nullptr;
    tile.value_scales = int8 ? scratch.value_scales : nullptr;
    return tile;
}

// Keys and values of the part that begins at `offset`.
void clear_slots(const KvCache& cache, std::uint8_t* keys, std::uint8_t* values, int offset) {
    const std::size_t item = cache.item_bytes(), bytes = kPartTokens * item;
    std::memset(keys + offset * cache.head_dim * item, 0, bytes * cache.head_dim);
    for (int d = 0; d < cache.head_dim; ++d) {
        std::memset(values + (d * cache.block_tokens + offset) * item, 0, bytes);
    }
}

}  // namespace

void put_kv(const KvCache& cache, int layer, int block, int head, int offset, const float* key,
            const float* value) {
    const int dim = cache.head_dim;
    if (!(largest_of(value, dim) <= kLargestBf16)) {
        const std::vector<float> broken(dim, __builtin_nanf("")), zeros(dim, 0.0f);
        return put_kv(cache, layer, block, head, offset, broken.data(), zeros.data());
    }
    std::uint8_t* keys = cache.keys(layer, block, head);
    std::uint8_t* values = cache.values(layer, block, head);
    if (offset % kPartTokens == 0 && reads_in_place(cache)) {
        clear_slots(cache, keys, values, offset);
    }
    if (cache.type == KvType::kFloat) {
        std::memcpy(keys + sizeof(float) * offset * dim, key, sizeof(float) * dim);
        scatter(value, dim, reinterpret_cast<float*>(values) + offset, cache.block_tokens);
    } else if (cache.type == KvType::kBf16) {
        Bf16 halves[kMaxHeadDim];
        put_bf16(key, dim, reinterpret_cast<Bf16*>(keys) + offset * dim);
        put_bf16(value, dim, halves);
        scatter(halves, dim, reinterpret_cast<Bf16*>(values) + offset, cache.block_tokens);
    } else {
        std::int8_t bytes[kMaxHeadDim];
        cache.scales(layer, block, 0, head)[offset] =
            put_int8(key, dim, reinterpret_cast<std::int8_t*>(keys) + offset * dim);
        cache.scales(layer, block, 1, head)[offset] = put_int8(value, dim, bytes);
        scatter(bytes, dim, reinterpret_cast<std::int8_t*>(values) + offset, cache.block_tokens);
    }
}

void move_kv(const KvCache& cache, int layer, const std::int32_t* blocks, int from, int to) {
    const int tokens = cache.block_tokens, dim = cache.head_dim, item = cache.item_bytes();
    const int source = blocks[from / tokens], target = blocks[to / tokens];
    from %= tokens, to %= tokens;
    for (int head = 0; head < cache.kv_heads; ++head) {
        std::memcpy(cache.keys(layer, target, head) + to * dim * item,
                    cache.keys(layer, source, head) + from * dim * item, dim * item);
        const std::uint8_t* values = cache.values(layer, source, head) + from * item;
        std::uint8_t* to_values = cache.values(layer, target, head) + to * item;
        for (int d = 0; d < dim; ++d) {
            std::memcpy(to_values + d * tokens * item, values + d * tokens * item, item);
        }
        for (int which = 0; which < 2 && cache.type == KvType::kInt8; ++which) {
            cache.scales(layer, target, which, head)[to] =
                cache.scales(layer, source, which, head)[from];
        }
    }
    const std::size_t index = cache.index_dim * cache.index_item_bytes();
    std::memcpy(cache.index_keys(layer, target) + to * index,
                cache.index_keys(layer, source) + from * index, index);
}

template <class T>
KvScratch<T>::KvScratch(int head_dim)
    : keys(static_cast<T*>(allocate(sizeof(T) * kTileTokens * head_dim))),
      values(static_cast<T*>(allocate(sizeof(T) * kTileTokens * head_dim))) {}

template <class T>
KvScratch<T>::~KvScratch() {
    std::free(keys);
    std::free(values);
}

namespace {

template <class T>
void point_at_cache(KvTile<T>& tile, int part, const KvSource& source, int first) {
    const KvCache& cache = source.cache;
    const int block = source.blocks[first / cache.block_tokens];
    const int offset = first % cache.block_tokens;
    const std::uint8_t* keys = cache.keys(source.layer, block, source.head);
    const std::uint8_t* values = cache.values(source.layer, block, source.head);
    tile.keys[part] = reinterpret_cast<const T*>(keys) + offset * cache.head_dim;
    tile.values[part] = reinterpret_cast<const T*>(values) + offset;
    tile.value_stride[part] = cache.block_tokens;
}

// Positions [first, first + count) into the first slots of a part.
template <class T>
void copy_part(const KvSource& source, int first, int count, int part, KvScratch<T>& scratch) {
    if (count < kPartTokens) clear_part(part, source.cache.head_dim, scratch);
    for (int i = 0; i < count;) {
        const int left = source.cache.block_tokens - (first + i) % source.cache.block_tokens;
        const int run = std::min(count - i, left);
        copy_run(source, first + i, run, part * kPartTokens + i, scratch);
        i += run;
    }
}

}  // namespace

template <class T>
KvTile<T> read_tile(const KvSource& source, int begin, int limit, KvScratch<T>& scratch) {
    KvTile<T> tile = empty_tile(source, begin, limit, scratch);
    for (int part = 0; part < tile.parts; ++part) {
        const int first = begin + part * kPartTokens;
        if (reads_in_place(source.cache)) {
            point_at_cache(tile, part, source, first);
            continue;
        }
        copy_part(source, first, std::min(kPartTokens, source.end - first), part, scratch);
        point_at_scratch(tile, part, source.cache.head_dim, scratch);
    }
    return tile;
}

template <class T>
KvTile<T> read_tree(const KvSource& source, const TreeTile& tree, KvScratch<T>& scratch) {
    KvTile<T> tile = empty_tile(source, tree.begin(), tree.begin() + tree.end(), scratch);
    for (int part = 0; part < tile.parts; ++part) {
        const int slot = part * kPartTokens;
        const int before = std::clamp(tree.base() - tree.begin() - slot, 0, kPartTokens);
        if (before == kPartTokens && reads_in_place(source.cache)) {
            point_at_cache(tile, part, source, tree.begin() + slot);
            continue;
        }
        copy_part(source, tree.begin() + slot, before, part, scratch);
        for (int i = before; i < kPartTokens; ++i) {
            if (tree.from(slot + i) >= 0) copy_run(source, tree.from(slot + i), 1, slot + i, scratch);
        }
        point_at_scratch(tile, part, source.cache.head_dim, scratch);
    }
    return tile;
}

template struct KvScratch<float>;
template struct KvScratch<Bf16>;
template KvTile<float> read_tile(const KvSource&, int, int, KvScratch<float>&);
template KvTile<Bf16> read_tile(const KvSource&, int, int, KvScratch<Bf16>&);
template KvTile<float> read_tree(const KvSource&, const TreeTile&, KvScratch<float>&);
template KvTile<Bf16> read_tree(const KvSource&, const TreeTile&, KvScratch<Bf16>&);

}  // namespace triptych
