/* Causal attention over the documents of a flat batch in bfloat16, for processors with AVX512-BF16.
 *
 * What lives here: forward and backward of one layer. What does not: which documents there are, and the same in torch's
 * operations (attention.py), which runs where this cannot.
 *
 * Everything is computed keys by queries, 64 queries side by side in four vectors: then the softmax over keys needs no
 * sums across a vector, and each product is rows of pairs times a matrix of interleaved pairs, which is what the
 * processor's instruction multiplies. Keys that no query of a block sees are never computed, and probabilities are made
 * again in the backward: memory grows with the length of a document, not with its square.
 *
 * Packed rows hold H query heads, K key heads, K value heads of D columns; D is a multiple of 32. A query sees `window`
 * positions, itself included, or all where that is 0.
 * A document is its shared prefix followed by its own rows: four numbers, start and stop of own rows and of the prefix.
 */
#include <immintrin.h>
#include <stdlib.h>

#include "numbers.h"

#define BLOCK 64

/* One tile of `product`: `rows` x 16 `vectors`, kept in registers. */
static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, long pairs, const bfloat16 *left,
                                                       long left_stride, const uint32_t *right, float *out,
                                                       long out_stride, const int add) {
    __m512 sums[6][4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            sums[r][v] = add ? _mm512_loadu_ps(out + r * out_stride + 16 * v) : _mm512_setzero_ps();
    for (long p = 0; p < pairs; p++) {
        __m512bh columns[4];
        for (int v = 0; v < vectors; v++) columns[v] = (__m512bh)_mm512_loadu_si512(right + p * BLOCK + 16 * v);
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, left + r * left_stride + 2 * p, 4);
            __m512bh spread = (__m512bh)_mm512_set1_epi32(pair);
            for (int v = 0; v < vectors; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], spread, columns[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) _mm512_storeu_ps(out + r * out_stride + 16 * v, sums[r][v]);
}

#define TILES(vectors)                                                                                                 \
    for (; r + 6 <= rows; r += 6)                                                                                      \
        tile(6, vectors, pairs, left + r * left_stride, left_stride, right, out + r * out_stride, out_stride, add);    \
    for (; r + 2 <= rows; r += 2)                                                                                      \
        tile(2, vectors, pairs, left + r * left_stride, left_stride, right, out + r * out_stride, out_stride, add);    \
    for (; r < rows; r++)                                                                                              \
        tile(1, vectors, pairs, left + r * left_stride, left_stride, right, out + r * out_stride, out_stride, add)

/* out [rows, 16 vectors] = left [rows, 2 pairs] x right [pairs, BLOCK] of interleaved pairs, or += where `add` is 1. */
#define PRODUCT(name, add_)                                                                                            \
    static void name(long rows, int vectors, long pairs, const bfloat16 *left, long left_stride, const uint32_t *right,    \
                     float *out, long out_stride) {                                                                    \
        const int add = add_;                                                                                          \
        long r = 0;                                                                                                    \
        switch (vectors) {                                                                                             \
            case 1: TILES(1); break;                                                                                   \
            case 2: TILES(2); break;                                                                                   \
            case 3: TILES(3); break;                                                                                   \
            default: TILES(4);                                                                                         \
        }                                                                                                              \
    }
PRODUCT(product, 0)
PRODUCT(add_product, 1)

/* Copy key (or value) rows of a document, prefix first: `rows` [L, D]; and across: `across` [D, even L], zero behind. */
static void gather(const bfloat16 *head, long stride, long size, const long *document, bfloat16 *rows, bfloat16 *across, long even) {
    long at = 0;
    for (int part = 0; part < 2; part++) {
        long begin = part ? document[0] : document[2], end = part ? document[1] : document[3];
        for (long t = begin; t < end; t++, at++) memcpy(rows + at * size, head + t * stride, 2 * size);
    }
    if (!across) return;
    for (long d = 0; d < size; d++) {
        for (long k = 0; k < at; k++) across[d * even + k] = rows[k * size + d];
        for (long k = at; k < even; k++) across[d * even + k] = 0;
    }
}

/* Interleave `count` rows of D columns so that each pair of columns lies beside the others': out [D / 2, BLOCK]. */
static void pairs_of_columns(const bfloat16 *rows, long stride, long size, long count, uint32_t *out) {
    memset(out, 0, size / 2 * BLOCK * 4);
    for (long q = 0; q < count; q++)
        for (long p = 0; p < size / 2; p++) memcpy(out + p * BLOCK + q, rows + q * stride + 2 * p, 4);
}

/* Interleave pairs of rows: out [BLOCK / 2, BLOCK] for 64 of their columns. */
static void pairs_of_rows(const bfloat16 *rows, long stride, long count, long columns, uint32_t *out) {
    memset(out, 0, BLOCK / 2 * BLOCK * 4);
    for (long q = 0; q < count; q++)
        for (long d = 0; d < columns; d++)
            out[q / 2 * BLOCK + d] |= (uint32_t)rows[q * stride + d] << (q % 2 ? 16 : 0);
}

/* scores [keys, BLOCK] of a block's queries; those that a query must not see become minus infinity. */
static void scores_of(long size, long window, long keys, int vectors, const bfloat16 *key_rows, const uint32_t *queries,
                      long first_position, float *scores) {
    product(keys, vectors, size / 2, key_rows, size, queries, scores, BLOCK);
    long from = window ? 0 : first_position;
    for (long k = 0; k < keys; k++) {
        if (k < from) continue;
        float *row = scores + k * BLOCK;
        for (long q = 0; q < 16 * vectors; q++) {
            long position = first_position + q;
            if (k > position || (window && k <= position - window)) row[q] = -INFINITY;
        }
    }
}

static long longest_of(const long *documents, long number) {
    long longest = 0;
    for (long i = 0; i < number; i++) {
        const long *d = documents + 4 * i;
        long length = d[1] - d[0] + d[3] - d[2];
        longest = length > longest ? length : longest;
    }
    return (longest + 1) / 2 * 2;
}

static void *room(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* out [T, out_stride], its first H x D columns; log_sums [H, T] for the backward. Returns 1 where memory ran out. */
int attention_forward(long num_rows, const long *documents, long number, long heads, long key_heads, long size,
                      float scale, long window, const bfloat16 *packed, bfloat16 *out, long out_stride, float *log_sums) {
    long stride = (heads + 2 * key_heads) * size, longest = longest_of(documents, number), group = heads / key_heads;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        bfloat16 *keys = room(2 * longest * size), *values = room(2 * longest * size), *across = room(2 * longest * size);
        float *scores = room(4 * longest * BLOCK), *mixed = room(4 * size * BLOCK);
        uint32_t *queries = room(4 * size / 2 * BLOCK), *chances = room(4 * longest / 2 * BLOCK);
        failed = !(keys && values && across && scores && mixed && queries && chances);
#pragma omp for schedule(static, 1) collapse(2)
        for (long i = 0; i < number; i++)
            for (long g = 0; g < key_heads; g++) {
                if (failed) continue;
                const long *document = documents + 4 * i;
                long prefix = document[3] - document[2], length = document[1] - document[0];
                long even = (prefix + length + 1) / 2 * 2;
                gather(packed + (heads + g) * size, stride, size, document, keys, NULL, even);
                gather(packed + (heads + key_heads + g) * size, stride, size, document, values, across, even);
                for (long h = g * group; h < (g + 1) * group; h++)
                    for (long begin = 0; begin < length; begin += BLOCK) {
                        long count = length - begin < BLOCK ? length - begin : BLOCK;
                        int vectors = (int)((count + 15) / 16);
                        long seen = prefix + begin + count, row = document[0] + begin;
                        pairs_of_columns(packed + row * stride + h * size, stride, size, count, queries);
                        scores_of(size, window, seen, vectors, keys, queries, prefix + begin, scores);
                        float top[BLOCK], sum[BLOCK];
                        for (int q = 0; q < BLOCK; q++) top[q] = -INFINITY, sum[q] = 0.0f;
                        for (long k = 0; k < seen; k++) {
                            const float *line = scores + k * BLOCK;
#pragma omp simd
                            for (int q = 0; q < BLOCK; q++) top[q] = line[q] > top[q] ? line[q] : top[q];
                        }
                        for (long k = 0; k < seen; k += 2) {
                            const float *low = scores + k * BLOCK, *high = low + BLOCK;
                            uint32_t *pair = chances + k / 2 * BLOCK;
                            int both = k + 1 < seen;
#pragma omp simd
                            for (int q = 0; q < BLOCK; q++) {
                                float a = exponential(scale * (low[q] - top[q]));
                                float b = both ? exponential(scale * (high[q] - top[q])) : 0.0f;
                                sum[q] += a + b;
                                pair[q] = narrow(a) | narrow(b) << 16;
                            }
                        }
                        product(size, vectors, (seen + 1) / 2, across, even, chances, mixed, BLOCK);
                        for (long q = 0; q < count; q++) {
                            float inverse = 1.0f / sum[q];
                            bfloat16 *target = out + (row + q) * out_stride + h * size;
                            for (long d = 0; d < size; d++) target[d] = (bfloat16)narrow(mixed[d * BLOCK + q] * inverse);
                            log_sums[h * num_rows + row + q] = scale * top[q] + logf(sum[q]);
                        }
                    }
            }
        free(keys), free(values), free(across), free(scores), free(mixed), free(queries), free(chances);
    }
    return failed;
}

/* grad [T, grad_stride], its first (H + 2K) x D columns: what flows to queries, keys and values of packed rows. */
int attention_backward(long num_rows, const long *documents, long number, long heads, long key_heads, long size,
                       float scale, long window, const bfloat16 *packed, const bfloat16 *out, long out_stride,
                       const bfloat16 *grad_out, const float *log_sums, bfloat16 *grad, long grad_stride) {
    long stride = (heads + 2 * key_heads) * size, longest = longest_of(documents, number), group = heads / key_heads;
    int failed = 0;
    /* Rows of a prefix get gradients from several documents: one key head is summed by one thread, in float32. */
#pragma omp parallel reduction(| : failed)
    {
        bfloat16 *keys = room(2 * longest * size), *values = room(2 * longest * size), *across = room(2 * longest * size);
        float *scores = room(4 * longest * BLOCK), *slopes = room(4 * longest * BLOCK), *turned = room(4 * size * BLOCK);
        float *sums = room(2 * 4 * num_rows * size), *own = room(2 * 4 * longest * size);
        bfloat16 *chances = room(2 * longest * BLOCK), *rises = room(2 * longest * BLOCK);
        uint32_t *pairs = room(4 * longest / 2 * BLOCK), *columns = room(4 * size / 2 * BLOCK);
        uint32_t *lines = room(4 * BLOCK / 2 * BLOCK);
        failed = !(keys && values && across && scores && slopes && turned && sums && own && chances && rises && pairs &&
                   columns && lines);
#pragma omp for schedule(dynamic, 1)
        for (long g = 0; g < key_heads; g++) {
            if (failed) continue;
            float *key_sums = sums, *value_sums = sums + num_rows * size;
            memset(sums, 0, 2 * 4 * num_rows * size);
            for (long i = 0; i < number; i++) {
                const long *document = documents + 4 * i;
                long prefix = document[3] - document[2], length = document[1] - document[0], all = prefix + length;
                long even = (all + 1) / 2 * 2;
                float *own_keys = own, *own_values = own + all * size;
                memset(own, 0, 2 * 4 * all * size);
                gather(packed + (heads + g) * size, stride, size, document, keys, across, even);
                gather(packed + (heads + key_heads + g) * size, stride, size, document, values, NULL, even);
                for (long h = g * group; h < (g + 1) * group; h++)
                    for (long begin = 0; begin < length; begin += BLOCK) {
                        long count = length - begin < BLOCK ? length - begin : BLOCK;
                        int vectors = (int)((count + 15) / 16);
                        long seen = prefix + begin + count, row = document[0] + begin;
                        const bfloat16 *query_rows = packed + row * stride + h * size;
                        const bfloat16 *grad_rows = grad_out + row * heads * size + h * size;
                        float log_sum[BLOCK], delta[BLOCK];
                        for (long q = 0; q < BLOCK; q++) {
                            /* Padding: a probability of e^-inf. */
                            log_sum[q] = q < count ? log_sums[h * num_rows + row + q] : INFINITY;
                            delta[q] = 0.0f;
                            if (q >= count) continue;
                            const bfloat16 *o = out + (row + q) * out_stride + h * size, *d = grad_rows + q * heads * size;
                            for (long c = 0; c < size; c++) delta[q] += widen(o[c]) * widen(d[c]);
                        }
                        pairs_of_columns(query_rows, stride, size, count, columns);
                        scores_of(size, window, seen, vectors, keys, columns, prefix + begin, scores);
                        pairs_of_columns(grad_rows, heads * size, size, count, columns);
                        product(seen, vectors, size / 2, values, size, columns, slopes, BLOCK);
                        for (long k = 0; k < seen; k++) {
                            float *score = scores + k * BLOCK, *slope = slopes + k * BLOCK;
                            bfloat16 *chance = chances + k * BLOCK, *rise = rises + k * BLOCK;
#pragma omp simd
                            for (int q = 0; q < BLOCK; q++) {
                                float p = q < 16 * vectors ? exponential(scale * score[q] - log_sum[q]) : 0.0f;
                                p = score[q] == -INFINITY || log_sum[q] == INFINITY ? 0.0f : p;
                                chance[q] = (bfloat16)narrow(p);
                                rise[q] = (bfloat16)narrow(p == 0.0f ? 0.0f : p * (slope[q] - delta[q]) * scale);
                            }
                        }
                        for (long k = 0; k < seen; k += 2) {
                            const bfloat16 *low = rises + k * BLOCK, *high = low + BLOCK;
                            int both = k + 1 < seen;
                            for (int q = 0; q < BLOCK; q++)
                                pairs[k / 2 * BLOCK + q] = low[q] | (both ? (uint32_t)high[q] << 16 : 0u);
                        }
                        product(size, vectors, (seen + 1) / 2, across, even, pairs, turned, BLOCK);
                        for (long q = 0; q < count; q++) {
                            bfloat16 *target = grad + (row + q) * grad_stride + h * size;
                            for (long d = 0; d < size; d++) target[d] = (bfloat16)narrow(turned[d * BLOCK + q]);
                        }
                        for (long c = 0; c < size; c += BLOCK) {
                            long wide = size - c < BLOCK ? size - c : BLOCK;
                            pairs_of_rows(grad_rows + c, heads * size, count, wide, lines);
                            add_product(seen, (int)(wide / 16), (count + 1) / 2, chances, BLOCK, lines, own_values + c, size);
                            pairs_of_rows(query_rows + c, stride, count, wide, lines);
                            add_product(seen, (int)(wide / 16), (count + 1) / 2, rises, BLOCK, lines, own_keys + c, size);
                        }
                    }
                for (long k = 0; k < all; k++) {
                    long row = k < prefix ? document[2] + k : document[0] + k - prefix;
                    for (long d = 0; d < size; d++) {
                        key_sums[row * size + d] += own_keys[k * size + d];
                        value_sums[row * size + d] += own_values[k * size + d];
                    }
                }
            }
            for (long t = 0; t < num_rows; t++) {
                bfloat16 *key = grad + t * grad_stride + (heads + g) * size, *value = key + key_heads * size;
                for (long d = 0; d < size; d++) {
                    key[d] = (bfloat16)narrow(key_sums[t * size + d]);
                    value[d] = (bfloat16)narrow(value_sums[t * size + d]);
                }
            }
        }
        free(keys), free(values), free(across), free(scores), free(slopes), free(turned), free(sums), free(own);
        free(chances), free(rises), free(pairs), free(columns), free(lines);
    }
    return failed;
}
