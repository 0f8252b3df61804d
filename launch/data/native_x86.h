/* along_row and along_columns of native.c with the vector instructions of x86-64: included there. */

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi,avx512vnni")))
#define BLOCK 5 /* outputs of a row that AVX-512 makes at a time: their values fill 15 of 16 lanes */
#define WIDE 64 /* bytes of a vector of AVX-512 */

/* As along_row, of ROWS rows. May read SLACK bytes beyond each of them, and writes one byte too many. */
AVX2 static void along_row_avx2(const uint8_t *row, int64_t stride, const Side *side, int64_t size, int mirrored, uint8_t *out,
                                int64_t out_stride) {
    /* Each lane is a row. Of 2 pixels r0 r1 g0 g1 b0 b1 as 16 bits, to be multiplied by w0 w1 w0 w1 w0 w1. */
    const __m256i pairs = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i half = _mm256_set1_epi32(1 << (side->precision - 1));
    const __m128i precision = _mm_cvtsi32_si128(side->precision);
    for (int64_t at = 0; at < size; at++) {
        int64_t i = mirrored ? size - 1 - at : at;
        const uint8_t *from = row + (int64_t)side->first[i] * CHANNELS;
        const int16_t *weights = side->weights + i * side->taps;
        __m256i low = half, high = half; /* rows 0 and 1, 2 and 3 */
        for (int k = 0; k < side->taps; k += 2, from += 2 * CHANNELS) {
            int32_t two;
            memcpy(&two, weights + k, 4);
            __m256i w = _mm256_set1_epi32(two);
            __m256i a = _mm256_loadu2_m128i((const __m128i *)(from + stride), (const __m128i *)from);
            __m256i b = _mm256_loadu2_m128i((const __m128i *)(from + 3 * stride), (const __m128i *)(from + 2 * stride));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_shuffle_epi8(a, pairs), w));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_shuffle_epi8(b, pairs), w));
        }
        __m256i bytes = _mm256_packs_epi32(_mm256_sra_epi32(low, precision), _mm256_sra_epi32(high, precision));
        bytes = _mm256_packus_epi16(bytes, bytes);
        const int32_t pixels[ROWS] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4),
                                      _mm256_extract_epi32(bytes, 1), _mm256_extract_epi32(bytes, 5)};
        for (int r = 0; r < ROWS; r++)
            memcpy(out + r * out_stride + at * CHANNELS, &pixels[r], 4);
    }
}

/* As along_columns, as many values as are a multiple of 16, written past the caches if so wished. Returns their number. */
AVX2 static int64_t along_columns_avx2(const uint8_t *rows, int64_t stride, const int16_t *weights, int taps, int precision,
                                       int64_t bytes, const float *scale, const float *shift, int past, void *out) {
    const __m256i half = _mm256_set1_epi32(1 << (precision - 1)), most = _mm256_set1_epi32(255);
    const __m128i by = _mm_cvtsi32_si128(precision);
    int64_t i = 0;
    for (; i + 16 <= bytes; i += 16) {
        __m256i low = half, high = half;
        for (int k = 0; k < taps; k += 2) {
            int32_t two;
            memcpy(&two, weights + k, 4);
            __m128i a = _mm_loadu_si128((const __m128i *)(rows + k * stride + i));
            __m128i b = _mm_loadu_si128((const __m128i *)(rows + (k + 1) * stride + i));
            __m256i w = _mm256_set1_epi32(two);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)), w));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)), w));
        }
        low = _mm256_min_epi32(_mm256_sra_epi32(low, by), most);
        high = _mm256_min_epi32(_mm256_sra_epi32(high, by), most);
        if (scale) {
            float *to = (float *)out + i;
            __m256 first = _mm256_mul_ps(_mm256_cvtepi32_ps(low), _mm256_loadu_ps(scale + i));
            __m256 second = _mm256_mul_ps(_mm256_cvtepi32_ps(high), _mm256_loadu_ps(scale + i + 8));
            first = _mm256_add_ps(first, _mm256_loadu_ps(shift + i));
            second = _mm256_add_ps(second, _mm256_loadu_ps(shift + i + 8));
            if (past) {
                _mm256_stream_ps(to, first);
                _mm256_stream_ps(to + 8, second);
            } else {
                _mm256_storeu_ps(to, first);
                _mm256_storeu_ps(to + 8, second);
            }
        } else {
            __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
            __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
            _mm_storeu_si128((__m128i *)((uint8_t *)out + i), packed);
        }
    }
    return i;
}

/* A table for along_row_avx512: of each block the byte of a row from which it is made, in WIDE bytes of their own; which of the
   WIDE bytes from there on belong to each lane; the weights of each 2 taps. Returns NULL if some block needs more bytes, or if
   memory is out: AVX2 needs no table. */
static uint8_t *blocks(const Side *side, int64_t size, int mirrored) {
    int64_t pairs = side->taps / 2, bytes = (2 + pairs) * WIDE, count = (size + BLOCK - 1) / BLOCK;
    uint8_t *table = calloc(count, bytes);
    for (int64_t at = 0; table && at < size; at++) {
        int64_t lane = at % BLOCK * CHANNELS, last = at - at % BLOCK + BLOCK - 1, i = mirrored ? size - 1 - at : at;
        last = last < size ? last : size - 1;
        int64_t from = side->first[mirrored ? size - 1 - last : at - at % BLOCK] * CHANNELS;
        int64_t first = side->first[i] * CHANNELS - from; /* of its bytes, the first one */
        uint8_t *block = table + at / BLOCK * bytes;
        if (first + 2 * CHANNELS > WIDE) {
            free(table);
            return NULL;
        }
        memcpy(block, &from, sizeof(from));
        for (int c = 0; c < CHANNELS; c++) {
            block[WIDE + (lane + c) * 4] = (uint8_t)(first + c);
            block[WIDE + (lane + c) * 4 + 2] = (uint8_t)(first + c + CHANNELS);
            for (int64_t pair = 0; pair < pairs; pair++)
                memcpy(block + (2 + pair) * WIDE + (lane + c) * 4, side->weights + i * side->taps + 2 * pair, 4);
        }
    }
    return table;
}

/* As along_row_avx2, but writes up to 16 bytes too many. */
AVX512 static void along_row_avx512(const uint8_t *row, int64_t stride, const uint8_t *table, const Side *side, int64_t size,
                                    uint8_t *out, int64_t out_stride) {
    const __m512i half = _mm512_set1_epi32(1 << (side->precision - 1));
    const __m128i precision = _mm_cvtsi32_si128(side->precision);
    const __mmask64 in_16_bits = 0x5555555555555555;
    for (int64_t at = 0; at < size; at += BLOCK, table += (2 + side->taps / 2) * WIDE) {
        __m512i sums[ROWS] = {half, half, half, half}, bytes = _mm512_loadu_si512(table + WIDE);
        int64_t from;
        memcpy(&from, table, sizeof(from));
        for (int pair = 0; pair < side->taps / 2; pair++, from += 2 * CHANNELS) {
            __m512i weights = _mm512_loadu_si512(table + (2 + pair) * WIDE);
            for (int r = 0; r < ROWS; r++) {
                __m512i values = _mm512_maskz_permutexvar_epi8(in_16_bits, bytes, _mm512_loadu_si512(row + r * stride + from));
                sums[r] = _mm512_dpwssd_epi32(sums[r], values, weights);
            }
        }
        for (int r = 0; r < ROWS; r++)
            _mm_storeu_si128((__m128i *)(out + r * out_stride + at * CHANNELS),
                             _mm512_cvtusepi32_epi8(_mm512_sra_epi32(sums[r], precision)));
    }
}

/* As along_columns_avx2, a multiple of 32. */
AVX512 static int64_t along_columns_avx512(const uint8_t *rows, int64_t stride, const int16_t *weights, int taps, int precision,
                                           int64_t bytes, const float *scale, const float *shift, int past, void *out) {
    const __m512i half = _mm512_set1_epi32(1 << (precision - 1)), most = _mm512_set1_epi32(255);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i pairs = _mm512_or_si512(lanes, _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(32)), 16));
    const __m512i both[2] = {pairs, _mm512_add_epi32(pairs, _mm512_set1_epi32(16 << 16 | 16))};
    const __m128i by = _mm_cvtsi32_si128(precision);
    const __mmask64 in_16_bits = 0x5555555555555555;
    int64_t i = 0;
    for (; i + 32 <= bytes; i += 32) {
        __m512i sums[2] = {half, half};
        for (int k = 0; k < taps; k += 2) {
            int32_t two;
            memcpy(&two, weights + k, 4);
            __m256i a = _mm256_loadu_si256((const __m256i *)(rows + k * stride + i));
            __m256i b = _mm256_loadu_si256((const __m256i *)(rows + (k + 1) * stride + i));
            __m512i of_rows = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
            for (int n = 0; n < 2; n++)
                sums[n] = _mm512_dpwssd_epi32(sums[n], _mm512_maskz_permutexvar_epi8(in_16_bits, both[n], of_rows),
                                              _mm512_set1_epi32(two));
        }
        for (int n = 0; n < 2; n++) {
            int64_t to = i + 16 * n;
            __m512i values = _mm512_min_epi32(_mm512_sra_epi32(sums[n], by), most);
            if (scale) {
                __m512 normalised = _mm512_mul_ps(_mm512_cvtepi32_ps(values), _mm512_loadu_ps(scale + to));
                normalised = _mm512_add_ps(normalised, _mm512_loadu_ps(shift + to));
                if (past)
                    _mm512_stream_ps((float *)out + to, normalised);
                else
                    _mm512_storeu_ps((float *)out + to, normalised);
            } else
                _mm_storeu_si128((__m128i *)((uint8_t *)out + to), _mm512_cvtusepi32_epi8(values));
        }
    }
    return i;
}

/* As VECTORS, for this CPU. */
static int vectors(void) {
    if (VECTORS > 1 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bw"))
        return 2;
    return __builtin_cpu_supports("avx2") ? 1 : 0;
}
