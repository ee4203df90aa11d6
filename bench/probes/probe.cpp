// Raw limits of the machine: reading memory, and bf16 products in tile registers.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

#include <sys/mman.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define PROBE_EXPORT __attribute__((visibility("default")))

namespace {

using Clock = std::chrono::steady_clock;

volatile float sink;  // what goes here cannot be optimised away

// Seconds that body(thread) takes in `threads` threads, all started before the clock.
template <class Body>
double timed(int threads, Body body) {
    std::atomic<int> waiting{threads};
    std::atomic<bool> go{false};
    std::vector<std::thread> team;
    for (int i = 0; i < threads; ++i) {
        team.emplace_back([&, i] {
            --waiting;
            while (!go) std::this_thread::yield();
            body(i);
        });
    }
    while (waiting > 0) std::this_thread::yield();
    const auto began = Clock::now();
    go = true;
    for (std::thread& member : team) member.join();
    return std::chrono::duration<double>(Clock::now() - began).count();
}

float read_all(const float* data, std::size_t count) {
    float total = 0;
#if defined(__AVX512F__)
    __m512 sum[4] = {};
    for (std::size_t k = 0; k < count; k += 64) {
        for (int j = 0; j < 4; ++j) {
            sum[j] = _mm512_add_ps(sum[j], _mm512_load_ps(data + k + 16 * j));
        }
    }
    for (const __m512& part : sum) total += _mm512_reduce_add_ps(part);
#else
    float sum[64] = {};  // independent sums: the compiler makes vectors of them
    for (std::size_t k = 0; k < count; k += 64) {
        for (int j = 0; j < 64; ++j) sum[j] += data[k + j];
    }
    for (float part : sum) total += part;
#endif
    return total;
}

#if defined(__AMX_BF16__)
constexpr int kTileFlops = 2 * 16 * 16 * 32;

void multiply_tiles(long rounds) {
    struct alignas(64) {
        unsigned char palette = 1, start_row = 0, reserved[14] = {};
        unsigned short column_bytes[16] = {};
        unsigned char rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
        config.column_bytes[i] = 64;
        config.rows[i] = 16;
    }
    // Not the intrinsic: older GCCs think that it reads eight bytes only and drop the other stores.
    asm volatile("ldtilecfg %0" ::"m"(config));
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (long k = 0; k < rounds; ++k) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}
#endif

}  // namespace

extern "C" {

// Bytes per second, the best of `repeats` passes over `bytes` (a multiple of 256 × threads) of
// memory, in huge pages if the system gives any. 0: no memory.
PROBE_EXPORT double probe_read(int threads, long bytes, int repeats) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    madvise(memory, bytes, MADV_HUGEPAGE);
    float* data = static_cast<float*>(memory);
    const std::size_t share = bytes / sizeof(float) / threads;
    // The pages must exist: untouched ones all map to one page of zeros.
    timed(threads, [&](int i) {
        for (std::size_t k = 0; k < share; ++k) data[i * share + k] = 1.0f;
    });
    double best = 0;
    for (int r = 0; r < repeats; ++r) {
        const double seconds =
            timed(threads, [&](int i) { sink = read_all(data + i * share, share); });
        if (bytes / seconds > best) best = bytes / seconds;
    }
    munmap(memory, bytes);
    return best;
}

// bf16 operations (a multiply-add is two) per second in tile registers; 0 where there are none.
PROBE_EXPORT double probe_tiles(int threads, long rounds) {
#if defined(__AMX_BF16__)
    constexpr int kArchReqXcompPerm = 0x1023;
    constexpr int kXfeatureXtiledata = 18;
    if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) != 0) return 0;
    const double seconds = timed(threads, [&](int) { multiply_tiles(rounds); });
    return 4.0 * kTileFlops * rounds * threads / seconds;
#else
    (void)threads, (void)rounds;
    return 0;
#endif
}

}
