// What Python sees of the library: C functions named tk_…; everything else stays inside.
#pragma once

#define TK_EXPORT __attribute__((visibility("default")))
