/* Element-wise passes between the matrix products of a decoder layer, each over its rows once.
 *
 * What lives here: loops. What does not: memory (the caller allocates), products, and which of these run
 * (kernels.py, where every function below has its twin in torch and its meaning in words).
 *
 * Compiled once for each element type: -DELEMENT_BFLOAT16 or -DELEMENT_FLOAT32. Arithmetic is float32 throughout; a
 * value is rounded where it is stored, and nowhere else. No flag that drops NaN or infinity is used: a run that
 * diverges must show it.
 *
 * T rows, E columns; `stride` is the distance of two rows, for columns that are part of a wider buffer.
 */
#include <stdlib.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "numbers.h"

#if defined(ELEMENT_BFLOAT16)
typedef bfloat16 element;
static inline float load(element value) { return widen(value); }
static inline element round_to_element(float value) { return (element)narrow(value); }
#else
typedef float element;
static inline float load(element value) { return value; }
static inline element round_to_element(float value) { return value; }
#endif

#define FOR_ROWS _Pragma("omp parallel for schedule(static) if (rows >= 64)") for (long t = 0; t < rows; t++)
#define FOR_COLUMNS _Pragma("omp simd") for (long i = 0; i < columns; i++)
#define SUM_COLUMNS _Pragma("omp simd reduction(+ : sum)") for (long i = 0; i < columns; i++)

/* stream += branch; normal = stream / rms(stream); wide = normal * (offset + weight). `branch` may be NULL. */
void add_norm(long rows, long columns, float *stream, const element *branch, const element *weight, float offset,
              float eps, element *normal, element *wide, long wide_stride, float *inverse) {
    FOR_ROWS {
        float *x = stream + t * columns;
        float sum = 0.0f;
        if (branch) {
            const element *y = branch + t * columns;
            SUM_COLUMNS {
                x[i] += load(y[i]);
                sum += x[i] * x[i];
            }
        } else {
            SUM_COLUMNS sum += x[i] * x[i];
        }
        float scale = 1.0f / sqrtf(sum / (float)columns + eps);
        inverse[t] = scale;
        element *n = normal + t * columns, *w = wide + t * wide_stride;
        FOR_COLUMNS {
            n[i] = round_to_element(x[i] * scale);
            w[i] = round_to_element(load(n[i]) * (offset + load(weight[i])));
        }
    }
}

/* wide = normal * (offset + weight). */
void scale_rows(long rows, long columns, const element *normal, const element *weight, float offset, element *wide,
                long wide_stride) {
    FOR_ROWS {
        const element *n = normal + t * columns;
        element *w = wide + t * wide_stride;
        FOR_COLUMNS w[i] = round_to_element(load(n[i]) * (offset + load(weight[i])));
    }
}

/* grad += inverse * (s - normal * mean(s * normal)) with s = grad_normed * (offset + weight); next = grad, rounded,
 * unless NULL. */
void norm_backward(long rows, long columns, float *grad, const element *grad_normed, const element *normal,
                   const element *weight, float offset, const float *inverse, element *next, long next_stride) {
    FOR_ROWS {
        float *g = grad + t * columns;
        const element *d = grad_normed + t * columns, *n = normal + t * columns;
        float sum = 0.0f;
        SUM_COLUMNS sum += load(d[i]) * (offset + load(weight[i])) * load(n[i]);
        float mean = sum / (float)columns, scale = inverse[t];
        FOR_COLUMNS g[i] += scale * (load(d[i]) * (offset + load(weight[i])) - load(n[i]) * mean);
        if (next) {
            element *out = next + t * next_stride;
            FOR_COLUMNS out[i] = round_to_element(g[i]);
        }
    }
}

/* Both activations are x sigmoid(s(x)): silu has s = x, gelu in its tanh form s = 2 sqrt(2 / pi) (x + .044715 x^3).
 * Their derivative is sigmoid (1 + x s' (1 - sigmoid)). */
static inline float inner(float x, int gelu) { return gelu ? 1.5957691216f * x * (1.0f + 0.044715f * x * x) : x; }
static inline float inner_slope(float x, int gelu) { return gelu ? 1.5957691216f * (1.0f + 0.134145f * x * x) : 1.0f; }

/* product = activation(gate) * up; the gate's columns come first in `gate_up`, then those of up. */
void glu(long rows, long columns, int gelu, const element *gate_up, element *product, long product_stride) {
    FOR_ROWS {
        const element *gate = gate_up + t * 2 * columns, *up = gate + columns;
        element *out = product + t * product_stride;
        FOR_COLUMNS {
            float x = load(gate[i]);
            out[i] = round_to_element(x / (1.0f + exponential(-inner(x, gelu))) * load(up[i]));
        }
    }
}

/* Gradients of gate and up into `grads`, laid out as `gate_up`, and the product once more, which is not kept. */
void glu_backward(long rows, long columns, int gelu, const element *gate_up, const element *grad_product,
                  element *grads, long grads_stride, element *product, long product_stride) {
    FOR_ROWS {
        const element *gate = gate_up + t * 2 * columns, *up = gate + columns, *d = grad_product + t * columns;
        element *grad_gate = grads + t * grads_stride, *grad_up = grad_gate + columns;
        element *out = product + t * product_stride;
        FOR_COLUMNS {
            float x = load(gate[i]), u = load(up[i]), g = load(d[i]);
            float sigmoid = 1.0f / (1.0f + exponential(-inner(x, gelu)));
            float active = x * sigmoid;
            grad_gate[i] = round_to_element(g * u * (sigmoid + active * (1.0f - sigmoid) * inner_slope(x, gelu)));
            grad_up[i] = round_to_element(g * active);
            out[i] = round_to_element(active * u);
        }
    }
}

/* Rotary positions in place on the first `heads` heads of packed rows: the two halves of a head are the coordinates.
 * `turn` is 1, or -1 for the transpose. cos and sin are [T, size]. */
void rotate(long rows, long heads, long size, element *packed, long stride, const float *cosines, const float *sines,
            float turn) {
    long half = size / 2;
    FOR_ROWS {
        const float *c = cosines + t * size, *s = sines + t * size;
        for (long h = 0; h < heads; h++) {
            element *left = packed + t * stride + h * size, *right = left + half;
            _Pragma("omp simd") for (long i = 0; i < half; i++) {
                float a = load(left[i]), b = load(right[i]);
                /* Forward takes each row's own sine, the transpose the other's. */
                float low = turn > 0 ? s[i] : s[half + i], high = turn > 0 ? s[half + i] : s[i];
                left[i] = round_to_element(a * c[i] - turn * b * low);
                right[i] = round_to_element(b * c[half + i] + turn * a * high);
            }
        }
    }
}

/* Negative log-likelihoods of `labels`, and the logits replaced by coefficient * (softmax - onehot). */
void cross_entropy(long rows, long columns, element *logits, const int64_t *labels, const float *coefficients,
                   float *losses) {
    _Pragma("omp parallel for schedule(static)") for (long t = 0; t < rows; t++) {
        element *x = logits + t * columns;
        float top = load(x[0]), sum = 0.0f;
        _Pragma("omp simd reduction(max : top)") for (long i = 0; i < columns; i++) {
            float value = load(x[i]);
            top = value > top ? value : top;
        }
        SUM_COLUMNS sum += exponential(load(x[i]) - top);
        float label = load(x[labels[t]]), scale = coefficients[t] / sum;
        losses[t] = top + logf(sum) - label;
        float at_label = coefficients[t] * (exponential(label - top) / sum - 1.0f);
        FOR_COLUMNS x[i] = round_to_element(scale * exponential(load(x[i]) - top));
        x[labels[t]] = round_to_element(at_label);
    }
}

#define UNROLLED _Pragma("GCC unroll 8")
#define PACK 4        /* Queries that share one load of keys and values. */
#define MOST_PARTS 8  /* Vectors of the largest head. */
#define LINE (64 / (long)sizeof(element)) /* What memory hands over at once. */

typedef float sixteen __attribute__((vector_size(64)));
typedef int32_t places __attribute__((vector_size(64)));

static inline sixteen load_sixteen(const element *at) {
    sixteen out;
    for (int i = 0; i < 16; i++) out[i] = load(at[i]);
    return out;
}

/* Sums of sixteen vectors as one: halves of two vectors are laid side by side and added, four times over. */
static __attribute__((noinline)) sixteen sums_of(sixteen *v) {
    const places low[4] = {{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
                           {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
                           {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
                           {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30}};
    _Pragma("GCC unroll 4") for (int round = 0; round < 4; round++)
        _Pragma("GCC unroll 8") for (int i = 0, half = 8 >> round; i < half; i++) {
            places first = low[round], second = first + half;
            v[i] = __builtin_shuffle(v[i], v[i + half], first) + __builtin_shuffle(v[i], v[i + half], second);
        }
    return v[0];
}

/* What the queries of one key head see: `count` positions, the first `prefix` of them shared by all rows. Strides are
 * those of positions; `shared_values` is how far behind its key a shared value lies, `ahead` how far behind a value the
 * key lies that will be read next, which is fetched from memory meanwhile. scores [PACK, count + 15]. */
typedef struct {
    const element *shared, *keys, *values;
    long shared_stride, stride, shared_values, prefix, count, ahead;
    float scale, *scores;
} view;

static inline const element *position(const view *seen, const element *own, long shared_offset, long t) {
    return t < seen->prefix ? seen->shared + shared_offset + t * seen->shared_stride
                            : own + (t - seen->prefix) * seen->stride;
}

/* Products of `pack` queries with one key, sixteen partial sums each, written PACKs of sixteen apart. A processor that
 * multiplies bfloat16 takes it as it is; elsewhere `wide` holds the queries in float32. The products are exact both
 * ways, and summed in float32. */
static inline __attribute__((always_inline)) void multiply(const long size, const long pack, const element *queries,
                                                           const float *wide, const element *key, sixteen *out) {
#if defined(ELEMENT_BFLOAT16) && defined(__AVX512BF16__)
    if (size % 32 == 0) {
        __m512bh part[MOST_PARTS / 2];
        UNROLLED for (long c = 0; c < size / 32; c++) part[c] = (__m512bh)_mm512_loadu_si512(key + 32 * c);
        UNROLLED for (long g = 0; g < pack; g++) {
            __m512 sum = _mm512_setzero_ps();
            UNROLLED for (long c = 0; c < size / 32; c++)
                sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(queries + g * size + 32 * c), part[c]);
            out[16 * g] = (sixteen)sum;
        }
        return;
    }
#endif
    sixteen part[MOST_PARTS];
    UNROLLED for (long c = 0; c < size / 16; c++) part[c] = load_sixteen(key + 16 * c);
    UNROLLED for (long g = 0; g < pack; g++) {
        sixteen sum = {0};
        UNROLLED for (long c = 0; c < size / 16; c++) {
            sixteen query;
            memcpy(&query, wide + g * size + 16 * c, sizeof(query));
            sum += query * part[c];
        }
        out[16 * g] = sum;
    }
}

/* Replace scores by e^(score - highest); return their sum. */
static __attribute__((noinline)) float exponentials(long count, float *line) {
    float top = -INFINITY, sum = 0.0f;
    _Pragma("omp simd reduction(max : top)") for (long t = 0; t < count; t++) top = line[t] > top ? line[t] : top;
    _Pragma("omp simd reduction(+ : sum)") for (long t = 0; t < count; t++) {
        line[t] = exponential(line[t] - top);
        sum += line[t];
    }
    return sum;
}

/* Attention of `pack` queries of one key head: each key and value is loaded once for all. `size` is a multiple of 16;
 * the compiler knows both numbers. */
static inline __attribute__((always_inline)) void attend_pack(const long size, const long pack, const element *queries,
                                                              const view *given, element *out) {
    const view seen = *given;
    const long parts = size / 16, line = seen.count + 15;
    float wide[PACK * 16 * MOST_PARTS], sums[PACK];
    for (long i = 0; i < pack * size; i++) wide[i] = load(queries[i]);
    for (long begin = 0; begin < seen.count; begin += 16) {
        sixteen products[PACK * 16];
        for (long i = 0; i < 16; i++) {
            const element *key = position(&seen, seen.keys, 0, begin + i < seen.count ? begin + i : seen.count - 1);
            for (long c = 0; c < size; c += LINE) __builtin_prefetch(key + (seen.values - seen.keys) + c);
            multiply(size, pack, queries, wide, key, products + i);
        }
        UNROLLED for (long g = 0; g < pack; g++) {
            sixteen found = sums_of(products + 16 * g) * seen.scale;
            memcpy(seen.scores + g * line + begin, &found, sizeof(found));
        }
    }
    for (long g = 0; g < pack; g++) sums[g] = exponentials(seen.count, seen.scores + g * line);
    sixteen mixed[PACK * MOST_PARTS];
    _Pragma("GCC unroll 32") for (long i = 0; i < pack * parts; i++) mixed[i] = (sixteen){0};
    for (long t = 0; t < seen.count; t++) {
        const element *value = position(&seen, seen.values, seen.shared_values, t);
        for (long c = 0; c < size; c += LINE) __builtin_prefetch(value + seen.ahead + c);
        UNROLLED for (long c = 0; c < parts; c++) {
            sixteen part = load_sixteen(value + 16 * c);
            UNROLLED for (long g = 0; g < pack; g++) mixed[g * parts + c] += seen.scores[g * line + t] * part;
        }
    }
    UNROLLED for (long g = 0; g < pack; g++)
        UNROLLED for (long c = 0; c < parts; c++)
            for (int i = 0; i < 16; i++)
                out[g * size + 16 * c + i] = round_to_element(mixed[g * parts + c][i] / sums[g]);
}

/* One function for each head size and pack, whoever calls it: a compiler is quick with these. */
typedef void (*attend_function)(const element *queries, const view *seen, element *out);
#define ATTEND_PACK(size, pack)                                                                                        \
    static __attribute__((noinline)) void attend_##size##_##pack(const element *q, const view *seen, element *out) {   \
        attend_pack(size, pack, q, seen, out);                                                                         \
    }
#define ATTEND_SIZE(size)                                                                                              \
    ATTEND_PACK(size, 1) ATTEND_PACK(size, 2) ATTEND_PACK(size, 3) ATTEND_PACK(size, 4)                                \
    static const attend_function attend_##size[PACK] = {attend_##size##_1, attend_##size##_2, attend_##size##_3,       \
                                                        attend_##size##_4};
ATTEND_SIZE(16)
ATTEND_SIZE(32)
ATTEND_SIZE(64)
ATTEND_SIZE(128)

/* All `group` queries of one key head. */
static void attend_head(long size, long group, const element *queries, const view *seen, element *out) {
    const attend_function *packs = size == 128 ? attend_128 : size == 64 ? attend_64 : size == 32 ? attend_32 : attend_16;
    for (long g = 0; g < group; g += PACK)
        packs[(group - g < PACK ? group - g : PACK) - 1](queries + g * size, seen, out + g * size);
}

/* Attention of one new position of each row, `packed` [B, heads, size] (queries, keys, values), over a cache
 * [B, key heads, capacity, size]: its key and value go to index `now`, and a row sees what it owns, from its start on,
 * and the `prefix` rows of `shared` [P, 2 x key heads, size]. `size` is 16, 32, 64 or 128. Returns 1 where memory ran
 * out. */
int attend_step(long rows, long key_heads, long group, long size, const element *packed, element *keys, element *values,
                long capacity, const int64_t *starts, long now, const element *shared, long prefix, float scale,
                element *out) {
    long heads = key_heads * (group + 2), key_size = key_heads * size;
    int failed = 0;
    _Pragma("omp parallel reduction(| : failed) if (rows * key_heads >= 16)") {
        float *scores = malloc(sizeof(float) * (size_t)(PACK * (prefix + now + 16)));
        failed = !scores;
        _Pragma("omp for collapse(2) schedule(static)") for (long b = 0; b < rows; b++) for (long h = 0; h < key_heads; h++) {
            if (failed) continue;
            const element *row = packed + b * heads * size, *new_key = row + (key_heads * group + h) * size;
            element *own_keys = keys + (b * key_heads + h) * capacity * size, *own_values = values + (own_keys - keys);
            memcpy(own_keys + now * size, new_key, sizeof(element) * size);
            memcpy(own_values + now * size, new_key + key_size, sizeof(element) * size);
            long start = starts[b];
            const view seen = {.shared = shared + h * size, .keys = own_keys + start * size,
                               .values = own_values + start * size, .shared_stride = 2 * key_size, .stride = size,
                               .shared_values = key_size, .prefix = prefix, .count = prefix + now + 1 - start,
                               .ahead = own_keys + capacity * size - own_values, .scale = scale, .scores = scores};
            attend_head(size, group, row + h * group * size, &seen, out + (b * key_heads + h) * group * size);
        }
        free(scores);
    }
    return failed;
}

/* The same for every position of new rows, which lie end to end in `packed`: bounds [documents, 2] says from where to
 * where each goes. A position sees the shared rows, those of its document before it, and itself. */
int attend_rows(long documents, const int64_t *bounds, long key_heads, long group, long size, const element *packed,
                const element *shared, long prefix, float scale, element *out) {
    long heads = key_heads * (group + 2), stride = heads * size, key_size = key_heads * size, longest = 0;
    int failed = 0;
    for (long d = 0; d < documents; d++)
        longest = bounds[2 * d + 1] - bounds[2 * d] > longest ? bounds[2 * d + 1] - bounds[2 * d] : longest;
    _Pragma("omp parallel reduction(| : failed)") {
        float *scores = malloc(sizeof(float) * (size_t)(PACK * (prefix + longest + 15)));
        failed = !scores;
        _Pragma("omp for collapse(2) schedule(dynamic)") for (long d = 0; d < documents; d++) for (long h = 0; h < key_heads; h++) {
            if (failed) continue;
            long start = bounds[2 * d];
            const element *keys = packed + start * stride + (key_heads * group + h) * size;
            view seen = {.shared = shared + h * size, .keys = keys, .values = keys + key_size,
                         .shared_stride = 2 * key_size, .stride = stride, .shared_values = key_size, .prefix = prefix,
                         .scale = scale, .scores = scores};
            for (long t = start; t < bounds[2 * d + 1]; t++) {
                seen.count = prefix + t + 1 - start;
                attend_head(size, group, packed + t * stride + h * group * size, &seen,
                            out + (t * key_heads + h) * group * size);
            }
        }
        free(scores);
    }
    return failed;
}
