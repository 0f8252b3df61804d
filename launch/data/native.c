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

#define CHANNELS 3
#define ROWS 4            /* that are resized at a time, for the weights to be loaded once */
#define ALIGNED 64        /* bytes to whose multiples whole vectors are written past the caches */
#define SLACK 64          /* bytes that may be read beyond what is needed, and are multiplied by 0 */
#define LARGE (128 << 10) /* bytes of an output: a batch of such ones would only push out of the caches what is needed next */

/* How one side is resized: output i is the sum of `taps` inputs from first[i] on, times weights[i * taps + ...], >> precision. */
typedef struct {
    int32_t *first;
    int16_t *weights;
    int taps, precision;
} Side;

/* A part of a decoded image; the order of the fields is that of the table in native.py. */
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
#include "native_x86.h"
#endif

/* Rows of a part that are resized along themselves wait in a buffer until the last output that needs them. */
static int64_t buffered(const Side *columns) { return 2 * columns->taps + 2 * ROWS; }

/* Bytes that are read of a row of the part. */
static int64_t readable(const Part *part, const Side *rows) { return (part->width + rows->taps) * CHANNELS + SLACK; }

/* One part -> (out_height, out_width, 3), by way of `buffer`, for buffered(columns) rows of out_width * 3 + SLACK bytes, and
   `last` for ROWS of `readable` bytes: the last rows of an image go there, as nothing may be read beyond it. */
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
        int past = out_height * bytes * (int64_t)sizeof(float) >= LARGE && (uintptr_t)to % ALIGNED == 0;
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
            resize(&parts[n], &rows, &columns, table, out_height, out_width, scale, shift, buffer, last,
                   (uint8_t *)out + n * bytes);
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
