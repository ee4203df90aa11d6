// Memory for packed weights and activations: cache-line aligned, on huge pages where it is large.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace triptych {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Uninitialised, in whole cache lines. What is read front to back in every step misses the TLB at
// every page of 4 KiB; the last part of a huge page stays in small ones, which cost no memory.
inline void* allocate(std::size_t bytes) {
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    return memory;
}

// The same for activations: rows lie far apart, so half a huge page is worth a whole one.
inline void* allocate_for_rows(std::size_t bytes) {
    if (bytes < kHugePage / 4) return allocate(bytes);
    return allocate((bytes + kHugePage - 1) / kHugePage * kHugePage);
}

// An array that grows to the largest size asked for and is kept.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(memory_); }

    // At least `count` elements, holding anything. Earlier pointers into it are void.
    T* take(std::size_t count) {
        if (count > size_) {
            std::free(memory_);
            memory_ = nullptr, size_ = 0;
            memory_ = static_cast<T*>(allocate_for_rows(count * sizeof(T)));
            size_ = count;
        }
        return memory_;
    }

    T* data() const { return memory_; }

  private:
    T* memory_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace triptych
