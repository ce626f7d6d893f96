/* bfloat16 and e^x in plain C, for loops that a compiler turns into vectors. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bfloat16;

static inline float widen(bfloat16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline uint32_t narrow(float value) { /* To nearest, ties to even; in the low half. */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

/* e^x to 2 units in the last place: e^x = 2^n e^r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial. */
static inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t power = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &power, 4);
    return p * scale;
}
