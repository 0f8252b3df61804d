/* Parts of decoded images, resized, mirrored and normalised in one pass: what launch/data/disk_feed.py calls by way of native.py.

   The arithmetic is that of torch's antialiased bilinear resize of uint8 images: integer weights of 16 bits, first along the rows,
   then along the columns, each result rounded to 8 bits; then float32 value * scale + shift, rounded after each operation. So the
   bits are those of resize.resized and normalise.Normaliser, on any CPU: compile with -ffp-contract=off. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef VECTORS /* the widest instructions that are used, where the CPU has them: 0 none, 1 AVX2, 2 AVX-512 with VBMI and VNNI */
#define VECTORS 2
#endif
#ifndef __x86_64__
#undef VECTORS
#define VECTORS 0
#endif
#if VECTORS
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi,avx512vnni")))
#endif

#define CHANNELS 3
#define ROWS 4   /* that are resized at a time, for the weights to be loaded once */
#define SLACK 64 /* bytes that may be read beyond what is needed, and are multiplied by 0 */
#define BLOCK 5  /* outputs of a row that AVX-512 makes at a time: their values fill 15 of 16 lanes */
#define WIDE 64  /* bytes of a vector of AVX-512 */
#define LARGE (128 << 10) /* bytes of an output: a batch of such ones would only push out of the caches what is needed next */

/* How one side is resized: output i is the sum of `taps` inputs from first[i] on, times weights[i * taps + ...], >> precision. */
typedef struct {
    int32_t *first;
    int16_t *weights;
    int taps, precision;
} Side;

/* A part of a decoded image; the order of the fields is that of native.Part. */
typedef struct {
    const uint8_t *pixels; /* its first one */
    const uint8_t *end;    /* of the memory that may be read */
    int64_t stride;        /* bytes from a row to the next */
    int64_t height, width;
    int64_t mirrored;
} Part;

static void release(Side *side) {
    free(side->first);
    free(side->weights);
}

/* `in` inputs -> `out` outputs, with an even number of taps: one that is not needed has weight 0. Returns -1 if memory is out. */
static int prepare(Side *side, int64_t in, int64_t out) {
    double scale = (double)in / (double)out, support = scale > 1 ? scale : 1, inverse = scale > 1 ? 1 / scale : 1, largest = 0;
    int most = (int)ceil(support) * 2 + 1;
    double *exact = calloc(out * most, sizeof(double));
    side->first = malloc(out * sizeof(int32_t));
    if (!side->first || !exact) {
        free(exact);
        return -1;
    }
    side->taps = 0;
    for (int64_t i = 0; i < out; i++) {
        double centre = scale * ((double)i + 0.5), total = 0, *row = exact + i * most;
        int64_t low = (int64_t)(centre - support + 0.5), high = (int64_t)(centre + support + 0.5);
        low = low < 0 ? 0 : low;
        high = high > in ? in : high;
        int64_t count = high - low > most ? most : high - low;
        for (int64_t k = 0; k < count; k++) {
            double distance = fabs(((double)(k + low) - centre + 0.5) * inverse);
            row[k] = distance < 1 ? 1 - distance : 0;
            total += row[k];
        }
        for (int64_t k = 0; k < count; k++) {
            row[k] = total != 0 ? row[k] / total : row[k];
            largest = row[k] > largest ? row[k] : largest;
        }
        side->first[i] = (int32_t)low;
        side->taps = count > side->taps ? (int)count : side->taps;
    }
    int needed = side->taps;
    side->taps = needed + needed % 2;
    side->weights = calloc(out * side->taps, sizeof(int16_t));
    side->precision = 0;
    while (side->precision < 22 && (int)(0.5 + largest * (double)(1 << (side->precision + 1))) < 1 << 15)
        side->precision++;
    for (int64_t i = 0; side->weights && i < out; i++)
        for (int k = 0; k < needed; k++)
            side->weights[i * side->taps + k] = (int16_t)(0.5 + exact[i * most + k] * (double)(1 << side->precision));
    free(exact);
    return side->weights ? 0 : -1;
}

static uint8_t in_8_bits(int32_t sum, int precision) {
    sum >>= precision;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* One row of the part -> `size` pixels, uint8 (size, 3). Reads nothing beyond the part. */
static void along_row(const uint8_t *row, int64_t width, const Side *side, int64_t size, int mirrored, uint8_t *out) {
    for (int64_t at = 0; at < size; at++) {
        int64_t i = mirrored ? size - 1 - at : at, first = side->first[i];
        int64_t count = width - first < side->taps ? width - first : side->taps;
        const int16_t *weights = side->weights + i * side->taps;
        for (int c = 0; c < CHANNELS; c++) {
            int32_t sum = 1 << (side->precision - 1);
            for (int64_t k = 0; k < count; k++)
                sum += weights[k] * row[(first + k) * CHANNELS + c];
            out[at * CHANNELS + c] = in_8_bits(sum, side->precision);
        }
    }
}

/* `taps` rows, of `bytes` values each and `stride` apart -> one row, as bytes, or as floats where there is a scale. */
static void along_columns(const uint8_t *rows, int64_t stride, const int16_t *weights, int taps, int precision, int64_t begin,
                          int64_t bytes, const float *scale, const float *shift, void *out) {
    for (int64_t i = begin; i < bytes; i++) {
        int32_t sum = 1 << (precision - 1);
        for (int k = 0; k < taps; k++)
            sum += weights[k] * rows[k * stride + i];
        uint8_t value = in_8_bits(sum, precision);
        if (scale)
            ((float *)out)[i] = (float)value * scale[i] + shift[i];
        else
            ((uint8_t *)out)[i] = value;
    }
}

#if VECTORS
/* The same for ROWS rows. May read SLACK bytes beyond each of them, and writes one byte too many. */
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
        const int32_t pixels[ROWS] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4), _mm256_extract_epi32(bytes, 1),
                                      _mm256_extract_epi32(bytes, 5)};
        for (int r = 0; r < ROWS; r++)
            memcpy(out + r * out_stride + at * CHANNELS, &pixels[r], 4);
    }
}

/* As many values as are a multiple of 16, written past the caches if so wished. Returns their number. */
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

/* A table for along_row_avx512: of each block the byte of a row from which it is made, in WIDE bytes of their own; which of the WIDE
   bytes from there on belong to each lane; the weights of each 2 taps. Returns NULL if some block needs more bytes, or memory is
   out: AVX2 needs no table. */
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
#endif

/* Rows of a part that are resized along themselves wait in a buffer until the last output that needs them. */
static int64_t buffered(const Side *columns) { return 2 * columns->taps + 2 * ROWS; }

/* Bytes that are read of a row of the part. */
static int64_t readable(const Part *part, const Side *rows) { return (part->width + rows->taps) * CHANNELS + SLACK; }

/* One part -> (out_height, out_width, 3), by way of `buffer`, for buffered(columns) rows of out_width * 3 + SLACK bytes, and `last`
   for ROWS of `readable` bytes: the last rows of an image go there, as nothing may be read beyond it. */
static void resize(const Part *part, const Side *rows, const Side *columns, const uint8_t *table, int64_t out_height,
                   int64_t out_width, const float *scale, const float *shift, uint8_t *buffer, uint8_t *last, uint8_t *out) {
    int64_t bytes = out_width * CHANNELS, stride = bytes + SLACK, base = 0, done = 0; /* the buffer has rows from base to done */
#if VECTORS
    const int wide = vectors();
#endif
    for (int64_t y = 0; y < out_height; y++) {
        int64_t first = columns->first[y], needed = first + columns->taps, begin = 0;
        const int16_t *weights = columns->weights + y * columns->taps;
        needed = needed < part->height ? needed : part->height;
        if (first + columns->taps + ROWS > base + buffered(columns)) {
            memmove(buffer, buffer + (first - base) * stride, (done - first) * stride);
            base = first;
        }
        while (done < needed) {
            const uint8_t *from = part->pixels + done * part->stride;
            uint8_t *to = buffer + (done - base) * stride;
#if VECTORS
            if (wide) {
                int64_t step = part->stride;
                if (from + (ROWS - 1) * step + readable(part, rows) > part->end) {
                    for (int64_t r = 0; r < ROWS && done + r < part->height; r++)
                        memcpy(last + r * readable(part, rows), from + r * step, part->width * CHANNELS);
                    from = last;
                    step = readable(part, rows);
                }
                if (table)
                    along_row_avx512(from, step, table, rows, out_width, to, stride);
                else
                    along_row_avx2(from, step, rows, out_width, (int)part->mirrored, to, stride);
                done += ROWS;
                continue;
            }
#endif
            along_row(from, part->width, rows, out_width, (int)part->mirrored, to);
            done++;
        }
        const uint8_t *from = buffer + (first - base) * stride;
        void *to = out + y * bytes * (scale ? sizeof(float) : 1);
#if VECTORS
        int past = out_height * bytes * (int64_t)sizeof(float) >= LARGE && (uintptr_t)to % WIDE == 0;
        if (wide > 1)
            begin = along_columns_avx512(from, stride, weights, columns->taps, columns->precision, bytes, scale, shift, past, to);
        else if (wide)
            begin = along_columns_avx2(from, stride, weights, columns->taps, columns->precision, bytes, scale, shift, past, to);
#endif
        along_columns(from, stride, weights, columns->taps, columns->precision, begin, bytes, scale, shift, to);
    }
}

/* `count` parts -> (count, out_height, out_width, 3): uint8, or with a scale and a shift for each value of a row, float32.

   Returns 0, or -1 if memory is out. */
int oneloop_resize(const Part *parts, int64_t count, int64_t out_height, int64_t out_width, const float *scale, const float *shift,
                   void *out) {
    int64_t bytes = out_height * out_width * CHANNELS * (scale ? (int64_t)sizeof(float) : 1);
    for (int64_t n = 0; n < count; n++) {
        Side rows = {0}, columns = {0};
        uint8_t *buffer = NULL, *last = NULL, *table = NULL;
        int failed = prepare(&rows, parts[n].width, out_width) || prepare(&columns, parts[n].height, out_height) ||
                     !(buffer = calloc(buffered(&columns), out_width * CHANNELS + SLACK)) ||
                     !(last = calloc(ROWS, readable(&parts[n], &rows)));
#if VECTORS
        table = !failed && vectors() > 1 ? blocks(&rows, out_width, (int)parts[n].mirrored) : NULL;
#endif
        if (!failed)
            resize(&parts[n], &rows, &columns, table, out_height, out_width, scale, shift, buffer, last, (uint8_t *)out + n * bytes);
        free(table);
        free(last);
        free(buffer);
        release(&rows);
        release(&columns);
        if (failed)
            return -1;
    }
#if VECTORS
    _mm_sfence(); /* what was written past the caches is there for other threads */
#endif
    return 0;
}
