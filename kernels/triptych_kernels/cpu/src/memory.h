// Memory for packed weights and activations: cache-line aligned, on huge pages where it is large.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace triptych {

// Uninitialised. Weights are read front to back in every step: with 4 KiB pages the walk through
// them misses the TLB at every page.
inline void* allocate(std::size_t bytes) {
    constexpr std::size_t kHuge = std::size_t{2} << 20;
    const std::size_t alignment = bytes >= kHuge / 4 ? kHuge : 64;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, bytes);
    if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= kHuge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
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
            memory_ = static_cast<T*>(allocate(count * sizeof(T)));
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
