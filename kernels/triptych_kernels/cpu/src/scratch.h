// Buffers of a thread that grow to the largest size asked for and are kept.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace triptych {

class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // At least `count` elements, aligned to a cache line, holding anything. Valid until the next
    // call on the same Scratch.
    template <class T>
    T* take(std::size_t count) {
        const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (bytes > size_) {
            std::free(memory_);
            memory_ = std::aligned_alloc(64, bytes);
            size_ = memory_ == nullptr ? 0 : bytes;
            if (memory_ == nullptr) throw std::bad_alloc();
        }
        return static_cast<T*>(memory_);
    }

  private:
    void* memory_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace triptych
