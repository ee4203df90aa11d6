// A word that other processes change to be noticed: short spinning first, then a futex.
#pragma once

#include <atomic>
#include <cstdint>

namespace triptych {

std::int64_t now_us();  // CLOCK_MONOTONIC

// One per process, handed to its peers as a sealed memfd of one page.
class Doorbell {
  public:
    static Doorbell* make();        // null, and errno, when there is no memory
    static Doorbell* open(int fd);  // a peer's; the descriptor stays the caller's
    ~Doorbell();
    Doorbell(const Doorbell&) = delete;
    Doorbell& operator=(const Doorbell&) = delete;

    int fd() const { return fd_; }  // of one that we made

    // Look at this first, then at what the bell announces, then wait for another value.
    std::uint32_t value() const { return page_->word.load(std::memory_order_acquire); }

    void ring();

    // Until the value is another than `seen`, `until_us` at the latest, and never long: a peer
    // could have spoilt the page, so whoever waits looks around from time to time. One thread at a
    // time.
    void wait(std::uint32_t seen, std::int64_t now_us, std::int64_t until_us, int spin_us);

  private:
    struct Page {
        std::atomic<std::uint32_t> word, waiters;
    };

    Doorbell(void* page, int fd) : page_(static_cast<Page*>(page)), fd_(fd) {}
    static Doorbell* map(int fd, bool ours);
    bool spin(std::uint32_t seen, std::int64_t until_us);
    void sleep(std::uint32_t seen, std::int64_t us);

    Page* page_;
    int fd_;  // -1: a peer's
    // Spinning pays only while the other side runs on another core and answers soon. After n spins
    // in vain the next 2^n - 1 waits go to sleep at once.
    int failures_ = 0, skips_ = 0;
};

}  // namespace triptych
