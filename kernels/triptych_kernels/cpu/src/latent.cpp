#include "latent.h"

#include <cstring>

#include "memory.h"
#include "norms.h"

namespace triptych {
namespace {

// A part of every row, normed, as the operand of the layer that follows.
const Operand& normed_part(OperandBuffer& buffer, const Linear& next, const float* from, int stride,
                           int rows, const float* weight, float eps) {
    Operand& to = buffer.take(next, rows);
    for_rows(rows, [&](int row) {
        static thread_local Buffer<float> memory;
        float* normed = memory.take(next.in);
        rms_norm(from + static_cast<std::size_t>(row) * stride, next.in, weight, eps, normed);
        put_row(to, row, normed);
    });
    return to;
}

OperandBuffer& operand_buffer() {
    static thread_local OperandBuffer buffer;
    return buffer;
}

}  // namespace

void expand_queries(const Latent& latent, const Linear& to, const float* compressed, int rows,
                    float* out, int stride) {
    apply(to,
          normed_part(operand_buffer(), to, compressed, latent.down->out, rows, latent.query_norm,
                      latent.eps),
          {Epilogue::Action::kStore, out, stride});
}

void expand_latent(const Latent& latent, const float* compressed, int rows, int head_dim,
                   float* heads, int stride) {
    const int width = latent.down->out, query_size = latent.query_up->out;
    if (latent.query_rank > 0) {
        expand_queries(latent, *latent.query_up, compressed, rows, heads, stride);
    }
    OperandBuffer& buffer = operand_buffer();
    const float* kv = compressed + latent.query_rank;
    apply(*latent.kv_up,
          normed_part(buffer, *latent.kv_up, kv, width, rows, latent.kv_norm, latent.eps),
          {Epilogue::Action::kStore, heads + query_size, stride});
    const int key_size = latent.kv_up->out / 2;
    for_rows(rows, [&](int row) {
        const float* key = kv + static_cast<std::size_t>(row) * width + latent.kv_rank;
        float* to = heads + static_cast<std::size_t>(row) * stride + query_size;
        for (int at = 0; at < key_size; at += head_dim) {
            std::memcpy(to + at, key, latent.rope_dim * sizeof(float));
        }
    });
}

}  // namespace triptych
