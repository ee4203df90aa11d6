#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace triptych {
namespace {

// Long enough to bridge the gap between two ops of a step, short enough not to take a core away
// from another process.
constexpr auto kSpin = std::chrono::microseconds(40);

void pause_core() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// True as soon as `ready()`; false when it did not become so within kSpin.
template <class Ready>
bool spin_until(Ready ready) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 32; ++i) {  // a clock read costs as much as some pauses
            if (ready()) return true;
            pause_core();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return false;
}

class Pool {
  public:
    ~Pool() { stop_workers(); }

    void resize(int count) {
        const std::lock_guard<std::mutex> turn(turn_);
        stop_workers();
        stopping_ = false;
        for (int i = 1; i < count; ++i) {
            workers_.emplace_back([this, seen = epoch_.load()] { work(seen); });
        }
        size_ = count;
    }

    int size() const { return size_; }

    void run(int count, Task task, void* context) {
        const std::lock_guard<std::mutex> turn(turn_);
        task_ = task;
        context_ = context;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        open_.store(true);
        announce();
        take_tasks();
        // From here on nobody can join; whoever joined before is counted in active_.
        open_.store(false);
        while (!spin_until([this] { return active_.load() == 0; })) std::this_thread::yield();
    }

  private:
    void work(unsigned seen) {
        for (;;) {
            const auto called = [&] { return epoch_.load() != seen; };
            if (!spin_until(called)) {
                std::unique_lock<std::mutex> lock(sleep_);
                ++sleepers_;
                wake_.wait(lock, called);
                --sleepers_;
            }
            seen = epoch_.load();
            if (stopping_) return;
            // Join first, look second: the caller closes first and looks at active_ second, so
            // either it waits for us or we see that the job is over.
            ++active_;
            if (open_.load()) take_tasks();
            --active_;
        }
    }

    void take_tasks() {
        inside_task = true;
        for (int i; (i = next_.fetch_add(1)) < count_;) task_(context_, i);
        inside_task = false;
    }

    void announce() {
        ++epoch_;
        if (sleepers_.load() == 0) return;
        { const std::lock_guard<std::mutex> lock(sleep_); }  // no one between look and wait
        wake_.notify_all();
    }

    void stop_workers() {
        stopping_ = true;
        announce();
        for (std::thread& worker : workers_) worker.join();
        workers_.clear();
    }

    std::mutex turn_;  // one job at a time
    std::vector<std::thread> workers_;
    std::atomic<int> size_{1};
    std::atomic<bool> stopping_{false};

    // The job. Written only while open_ is false and active_ is 0.
    Task task_ = nullptr;
    void* context_ = nullptr;
    int count_ = 0;
    std::atomic<int> next_{0};

    alignas(64) std::atomic<bool> open_{false};
    std::atomic<unsigned> epoch_{0};  // counts calls to look around
    alignas(64) std::atomic<int> active_{0};

    std::mutex sleep_;
    std::condition_variable wake_;
    std::atomic<int> sleepers_{0};

  public:
    static thread_local bool inside_task;
};

thread_local bool Pool::inside_task = false;

Pool* current_pool = nullptr;

// Never destroyed: at exit other threads may still be inside. A forked child has none of its
// parent's threads and starts over with a pool of its own, without helpers until told otherwise.
Pool& pool() {
    static std::once_flag once;
    std::call_once(once, [] {
        current_pool = new Pool;
        pthread_atfork(nullptr, nullptr, [] { current_pool = new Pool; });
    });
    return *current_pool;
}

}  // namespace

int num_threads() { return pool().size(); }

void parallel_for(int count, Task task, void* context) {
    if (count <= 1 || Pool::inside_task || pool().size() == 1) {
        for (int i = 0; i < count; ++i) task(context, i);
        return;
    }
    pool().run(count, task, context);
}

}  // namespace triptych

void tk_set_threads(int count) { triptych::pool().resize(count < 1 ? 1 : count); }

int tk_threads() { return triptych::num_threads(); }
