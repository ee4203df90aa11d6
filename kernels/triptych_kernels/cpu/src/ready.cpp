#include "export.h"

#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern "C" {
// 1 if this process may run what the library was compiled for.
TK_EXPORT int tk_ready();
}

int tk_ready() {
#if defined(__AMX_TILE__)
    // Tile registers are 8 KiB of state per thread; Linux hands them out on request only. All
    // threads of the process share the permission, earlier ones too.
    constexpr int kArchReqXcompPerm = 0x1023;
    constexpr int kXfeatureXtiledata = 18;
    return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
    return 1;
#endif
}
