#include "rows_segment.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "export.h"

namespace triptych {

Segment* Segment::map(int fd, const SegmentShape& shape) {
    if (!SegmentLayout::possible(shape)) return errno = EINVAL, nullptr;
    const SegmentLayout layout(shape);
    // Unsealed, the other side could cut it off under our feet, and a read would kill us.
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) return errno = EPERM, nullptr;
    struct stat about;
    if (fstat(fd, &about) != 0) return nullptr;
    if (static_cast<std::size_t>(about.st_size) < layout.total) return errno = EINVAL, nullptr;
    constexpr int kHow = MAP_SHARED | MAP_POPULATE;
    void* base = mmap(nullptr, layout.total, PROT_READ | PROT_WRITE, kHow, fd, 0);
    if (base == MAP_FAILED) return nullptr;
    const auto* header = static_cast<const SegmentHeader*>(base);
    if (header->magic != kRowsMagic || std::memcmp(&header->shape, &shape, sizeof shape) != 0) {
        munmap(base, layout.total);
        return errno = EPROTO, nullptr;
    }
    return new Segment(static_cast<std::uint8_t*>(base), shape);
}

Segment::~Segment() { munmap(base_, layout.total); }

}  // namespace triptych

extern "C" {

// Bytes of a segment; 0: no such shape.
TK_EXPORT std::uint64_t tk_rows_segment_bytes(const triptych::SegmentShape* shape) {
    if (!triptych::SegmentLayout::possible(*shape)) return 0;
    return triptych::SegmentLayout(*shape).total;
}

// Writes the header page of an empty segment; `page` has room for a page.
TK_EXPORT void tk_rows_segment_header(const triptych::SegmentShape* shape, void* page) {
    const triptych::SegmentHeader header{triptych::kRowsMagic, 0, *shape};
    std::memset(page, 0, triptych::kPage);
    std::memcpy(page, &header, sizeof header);
}
}
