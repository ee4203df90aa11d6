// A fork-join pool: persistent threads that run the tasks of one job together with its caller.
//
// Made for short jobs in quick succession on cores that other processes use too: a thread without
// work spins for some microseconds, because the next job of a step is usually near, and then
// sleeps. The caller never waits for a thread to wake up: it takes tasks itself, and whoever comes
// late finds nothing to do.
#pragma once

#include "export.h"

namespace triptych {

using Task = void (*)(void* context, int index);

// Runs task(context, i) for every i in [0, count), in any order, on up to `num_threads()` threads,
// and returns when all are done. Inside a task it runs everything on the spot; calls from different
// threads take turns. A task must not throw.
void parallel_for(int count, Task task, void* context);

// The same for a callable: parallel_for(n, [&](int i) { … }).
template <class Body>
void parallel_for(int count, Body&& body) {
    auto* pointer = &body;
    parallel_for(
        count, [](void* context, int index) { (*static_cast<decltype(pointer)>(context))(index); },
        pointer);
}

// Threads that share a job, its caller included. A result must never depend on it.
int num_threads();

}  // namespace triptych

extern "C" {
// 1 until told otherwise. Not while a job runs in another thread of this process: it waits for it.
TK_EXPORT void tk_set_threads(int count);
TK_EXPORT int tk_threads();
}
