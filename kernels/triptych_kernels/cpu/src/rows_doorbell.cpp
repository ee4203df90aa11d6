#include "rows_doorbell.h"

#include <cerrno>
#include <climits>
#include <ctime>
#include <fcntl.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "export.h"

namespace triptych {
namespace {

constexpr std::size_t kBellBytes = 4096;
constexpr std::int64_t kLookAroundUs = 100'000;
constexpr int kMaxFailures = 6;
constexpr double kMaxSpinUs = 200;
constexpr double kNewest = 0.125;  // weight of a wake-up among those before

}  // namespace

std::int64_t now_us() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000LL + now.tv_nsec / 1000;
}

Doorbell* Doorbell::make() {
    const int fd = memfd_create("triptych-bell", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return nullptr;
    Doorbell* bell = nullptr;
    if (ftruncate(fd, kBellBytes) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0) {
        bell = map(fd, true);
    }
    if (bell == nullptr) close(fd);
    return bell;
}

Doorbell* Doorbell::open(int fd) {
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) return errno = EPERM, nullptr;
    struct stat about;
    if (fstat(fd, &about) != 0) return nullptr;
    if (about.st_size < static_cast<off_t>(kBellBytes)) return errno = EINVAL, nullptr;
    return map(fd, false);
}

Doorbell* Doorbell::map(int fd, bool ours) {
    constexpr int kHow = MAP_SHARED | MAP_POPULATE;
    void* page = mmap(nullptr, kBellBytes, PROT_READ | PROT_WRITE, kHow, fd, 0);
    return page == MAP_FAILED ? nullptr : new Doorbell(page, ours ? fd : -1);
}

Doorbell::~Doorbell() {
    munmap(page_, kBellBytes);
    if (fd_ >= 0) close(fd_);
}

void Doorbell::ring() {
    // Both sides change first and look second, so either we see the waiter or it sees the change.
    page_->word.fetch_add(1);
    if (page_->waiters.load() == 0) return;
    page_->rung_us.store(now_us(), std::memory_order_relaxed);
    syscall(SYS_futex, &page_->word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Doorbell::wait(std::uint32_t seen, std::int64_t now, std::int64_t until_us, int spin_us) {
    if (spin_us > 0 && spin(seen, std::min(now + spin_limit(spin_us), until_us))) return;
    const std::int64_t left = until_us - now;
    if (left > 0) sleep(seen, std::min(left, kLookAroundUs));
}

int Doorbell::spin_limit(int least_us) const {
    return std::max(least_us, static_cast<int>(std::min(wake_us_, kMaxSpinUs)));
}

bool Doorbell::spin(std::uint32_t seen, std::int64_t until_us) {
    if (skips_ > 0) return --skips_, false;
    do {
        for (int i = 0; i < 16; ++i) {  // a clock read costs as much as some pauses
            if (value() != seen) {
                failures_ = 0;
                return true;
            }
            _mm_pause();
        }
    } while (now_us() < until_us);
    failures_ = std::min(failures_ + 1, kMaxFailures);
    skips_ = (1 << failures_) - 1;
    return false;
}

void Doorbell::sleep(std::uint32_t seen, std::int64_t us) {
    const timespec left{us / 1'000'000, us % 1'000'000 * 1000};
    page_->waiters.fetch_add(1);
    const std::int64_t began = now_us();
    const bool woken =
        syscall(SYS_futex, &page_->word, FUTEX_WAIT, seen, &left, nullptr, 0) == 0;
    page_->waiters.fetch_sub(1);
    const std::int64_t rung = page_->rung_us.load(std::memory_order_relaxed);
    if (!woken || rung < began) return;  // nobody was asleep when it rang
    wake_us_ += kNewest * (static_cast<double>(std::max<std::int64_t>(0, now_us() - rung)) - wake_us_);
}

}  // namespace triptych

using triptych::Doorbell;

extern "C" {

// Null when there is no memory.
TK_EXPORT Doorbell* tk_rows_bell_new() { return Doorbell::make(); }

TK_EXPORT void tk_rows_bell_free(Doorbell* bell) { delete bell; }

TK_EXPORT int tk_rows_bell_fd(Doorbell* bell) { return bell->fd(); }

TK_EXPORT void tk_rows_bell_ring(Doorbell* bell) { bell->ring(); }
}
