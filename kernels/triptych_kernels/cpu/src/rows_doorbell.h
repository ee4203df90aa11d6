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
    // time. `spin_us`: least time of spinning, 0: never.
    void wait(std::uint32_t seen, std::int64_t now, std::int64_t until_us, int spin_us);

  private:
    struct Page {
        std::atomic<std::uint32_t> word, waiters;
        std::atomic<std::int64_t> rung_us;  // when a sleeper was last woken
    };

    Doorbell(void* page, int fd) : page_(static_cast<Page*>(page)), fd_(fd) {}
    static Doorbell* map(int fd, bool ours);
    bool spin(std::uint32_t seen, std::int64_t until_us);
    void sleep(std::uint32_t seen, std::int64_t us);
    int spin_limit(int least_us) const;

    Page* page_;
    int fd_;  // -1: a peer's
    // Whoever spins as long as waking up costs, and sleeps then, never pays more than twice what the
    // better of the two would have cost (Karlin et al., 1991). In virtual machines, where an idle
    // core is left to others, that is ten times what it is on bare metal: so it is measured.
    double wake_us_ = 0;
    // Spinning pays only while the other side runs on another core and answers soon. After n spins
    // in vain the next 2^n - 1 waits go to sleep at once.
    int failures_ = 0, skips_ = 0;
};

}  // namespace triptych
