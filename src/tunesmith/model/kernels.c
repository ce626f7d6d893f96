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

/* stream += branch; normal = stream / rms(stream); wide = normal * weight. `branch` may be NULL. */
void add_norm(long rows, long columns, float *stream, const element *branch, const element *weight, float eps,
              element *normal, element *wide, long wide_stride, float *inverse) {
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
            w[i] = round_to_element(load(n[i]) * load(weight[i]));
        }
    }
}

/* wide = normal * weight. */
void scale_rows(long rows, long columns, const element *normal, const element *weight, element *wide,
                long wide_stride) {
    FOR_ROWS {
        const element *n = normal + t * columns;
        element *w = wide + t * wide_stride;
        FOR_COLUMNS w[i] = round_to_element(load(n[i]) * load(weight[i]));
    }
}

/* grad += inverse * (s - normal * mean(s * normal)) with s = grad_normed * weight; next = grad, rounded, unless NULL. */
void norm_backward(long rows, long columns, float *grad, const element *grad_normed, const element *normal,
                   const element *weight, const float *inverse, element *next, long next_stride) {
    FOR_ROWS {
        float *g = grad + t * columns;
        const element *d = grad_normed + t * columns, *n = normal + t * columns;
        float sum = 0.0f;
        SUM_COLUMNS sum += load(d[i]) * load(weight[i]) * load(n[i]);
        float mean = sum / (float)columns, scale = inverse[t];
        FOR_COLUMNS g[i] += scale * (load(d[i]) * load(weight[i]) - load(n[i]) * mean);
        if (next) {
            element *out = next + t * next_stride;
            FOR_COLUMNS out[i] = round_to_element(g[i]);
        }
    }
}

/* product = silu(gate) * up; the gate's columns come first in `gate_up`, then those of up. */
void swiglu(long rows, long columns, const element *gate_up, element *product, long product_stride) {
    FOR_ROWS {
        const element *gate = gate_up + t * 2 * columns, *up = gate + columns;
        element *out = product + t * product_stride;
        FOR_COLUMNS {
            float x = load(gate[i]);
            out[i] = round_to_element(x / (1.0f + exponential(-x)) * load(up[i]));
        }
    }
}

/* Gradients of gate and up into `grads`, laid out as `gate_up`, and the product once more, which is not kept.
 * d silu(x) = s (1 + x (1 - s)) with s the sigmoid of x. */
void swiglu_backward(long rows, long columns, const element *gate_up, const element *grad_product, element *grads,
                     long grads_stride, element *product, long product_stride) {
    FOR_ROWS {
        const element *gate = gate_up + t * 2 * columns, *up = gate + columns, *d = grad_product + t * columns;
        element *grad_gate = grads + t * grads_stride, *grad_up = grad_gate + columns;
        element *out = product + t * product_stride;
        FOR_COLUMNS {
            float x = load(gate[i]), u = load(up[i]), g = load(d[i]);
            float sigmoid = 1.0f / (1.0f + exponential(-x));
            float silu = x * sigmoid;
            grad_gate[i] = round_to_element(g * u * (sigmoid + silu * (1.0f - sigmoid)));
            grad_up[i] = round_to_element(g * silu);
            out[i] = round_to_element(silu * u);
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
