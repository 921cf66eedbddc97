#include "kernels.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define OPQN_X86 1
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define OPQN_NEON 1
#include <arm_neon.h>
#endif

namespace opqn {
namespace {

std::size_t masks_plain(const std::uint8_t* planes, std::size_t num_groups, std::size_t num_rows,
                        const std::uint8_t* deficits, std::uint32_t* masks) {
    std::size_t count = 0;
    for (std::size_t group = 0; group < num_groups; ++group, planes += num_rows * kGroup) {
        std::uint32_t sums[kGroup] = {};
        for (std::size_t row = 0; row < num_rows; ++row) {
            const std::uint8_t* bytes = planes + row * kGroup;
            const std::uint8_t* low = deficits + row * 32;
            const std::uint8_t* high = low + 16;
            for (std::size_t i = 0; i < kGroup; ++i) sums[i] += low[bytes[i] & 15] + high[bytes[i] >> 4];
        }
        std::uint32_t mask = 0;
        for (std::size_t i = 0; i < kGroup; ++i) mask |= static_cast<std::uint32_t>(sums[i] < 255) << i;
        masks[group] = mask;
        count += static_cast<std::size_t>(__builtin_popcount(masks[group]));
    }
    return count;
}

#ifdef OPQN_X86

// The sums of the deficits of kAtOnce groups: more than one share the loads of the tables.
template <std::size_t kAtOnce>
__attribute__((target("avx2,popcnt"))) inline std::size_t groups_avx2(const std::uint8_t* planes, std::size_t num_rows,
                                                                      const std::uint8_t* deficits,
                                                                      std::uint32_t* masks) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i low_sums[kAtOnce], high_sums[kAtOnce];  // two chains of additions each
    for (std::size_t i = 0; i < kAtOnce; ++i) low_sums[i] = high_sums[i] = _mm256_setzero_si256();
    for (std::size_t row = 0; row < num_rows; ++row) {
        const auto* table = reinterpret_cast<const __m128i*>(deficits + row * 32);
        const __m256i low_table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table));
        const __m256i high_table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table + 1));
        for (std::size_t i = 0; i < kAtOnce; ++i) {
            const auto* place = reinterpret_cast<const __m256i*>(planes + (i * num_rows + row) * kGroup);
            const __m256i bytes = _mm256_loadu_si256(place);
            const __m256i low = _mm256_shuffle_epi8(low_table, _mm256_and_si256(bytes, nibble));
            const __m256i shifted = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
            low_sums[i] = _mm256_adds_epu8(low_sums[i], low);
            high_sums[i] = _mm256_adds_epu8(high_sums[i], _mm256_shuffle_epi8(high_table, shifted));
        }
    }
    std::size_t count = 0;
    for (std::size_t i = 0; i < kAtOnce; ++i) {
        const __m256i sum = _mm256_adds_epu8(low_sums[i], high_sums[i]);
        const __m256i pruned = _mm256_cmpeq_epi8(sum, _mm256_set1_epi8(-1));
        masks[i] = ~static_cast<std::uint32_t>(_mm256_movemask_epi8(pruned));
        count += static_cast<std::size_t>(__builtin_popcount(masks[i]));
    }
    return count;
}

__attribute__((target("avx2,popcnt"))) std::size_t masks_avx2(const std::uint8_t* planes, std::size_t num_groups,
                                                              std::size_t num_rows, const std::uint8_t* deficits,
                                                              std::uint32_t* masks) {
    std::size_t count = 0, group = 0;
    for (; group + 4 <= num_groups; group += 4, planes += 4 * num_rows * kGroup) {
        count += groups_avx2<4>(planes, num_rows, deficits, masks + group);
    }
    for (; group < num_groups; ++group, planes += num_rows * kGroup) {
        count += groups_avx2<1>(planes, num_rows, deficits, masks + group);
    }
    return count;
}

// Two rows of a group fill a register; the last of an odd number of rows takes half of one.
__attribute__((target("avx512f,avx512bw,avx2,popcnt"))) std::size_t masks_avx512(const std::uint8_t* planes,
                                                                                 std::size_t num_groups,
                                                                                 std::size_t num_rows,
                                                                                 const std::uint8_t* deficits,
                                                                                 std::uint32_t* masks) {
    const __m512i nibble = _mm512_set1_epi8(15);
    std::size_t count = 0;
    for (std::size_t group = 0; group < num_groups; ++group, planes += num_rows * kGroup) {
        __m512i sum = _mm512_setzero_si512();
        for (std::size_t row = 0; row < num_rows; row += 2) {
            const bool is_pair = row + 1 < num_rows;
            const __mmask16 half = is_pair ? 0xFFFF : 0x00FF;  // in 32-bit parts
            const __m512i bytes = _mm512_maskz_loadu_epi32(half, planes + row * kGroup);
            // 16 bytes each: low and high table of the first row, then of the second.
            const __m512i tables = _mm512_maskz_loadu_epi32(half, deficits + row * 32);
            const __m512i low_table = _mm512_shuffle_i32x4(tables, tables, _MM_SHUFFLE(2, 2, 0, 0));
            const __m512i high_table = _mm512_shuffle_i32x4(tables, tables, _MM_SHUFFLE(3, 3, 1, 1));
            const __m512i shifted = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
            sum = _mm512_adds_epu8(sum, _mm512_shuffle_epi8(low_table, _mm512_and_si512(bytes, nibble)));
            sum = _mm512_adds_epu8(sum, _mm512_shuffle_epi8(high_table, shifted));
        }
        const __m256i total = _mm256_adds_epu8(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
        const __m256i pruned = _mm256_cmpeq_epi8(total, _mm256_set1_epi8(-1));
        masks[group] = ~static_cast<std::uint32_t>(_mm256_movemask_epi8(pruned));
        count += static_cast<std::size_t>(__builtin_popcount(masks[group]));
    }
    return count;
}

#endif
#ifdef OPQN_NEON

std::uint32_t neon_mask(uint8x16_t kept) {  // one bit a byte
    static const std::uint8_t kBits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bits = vandq_u8(kept, vld1q_u8(kBits));
    return vaddv_u8(vget_low_u8(bits)) | static_cast<std::uint32_t>(vaddv_u8(vget_high_u8(bits))) << 8;
}

std::size_t masks_neon(const std::uint8_t* planes, std::size_t num_groups, std::size_t num_rows,
                       const std::uint8_t* deficits, std::uint32_t* masks) {
    const uint8x16_t nibble = vdupq_n_u8(15);
    const uint8x16_t all = vdupq_n_u8(255);
    std::size_t count = 0;
    for (std::size_t group = 0; group < num_groups; ++group, planes += num_rows * kGroup) {
        uint8x16_t first = vdupq_n_u8(0);
        uint8x16_t second = vdupq_n_u8(0);
        for (std::size_t row = 0; row < num_rows; ++row) {
            const uint8x16_t low_table = vld1q_u8(deficits + row * 32);
            const uint8x16_t high_table = vld1q_u8(deficits + row * 32 + 16);
            const uint8x16_t a = vld1q_u8(planes + row * kGroup);
            const uint8x16_t b = vld1q_u8(planes + row * kGroup + 16);
            first = vqaddq_u8(first, vqtbl1q_u8(low_table, vandq_u8(a, nibble)));
            first = vqaddq_u8(first, vqtbl1q_u8(high_table, vshrq_n_u8(a, 4)));
            second = vqaddq_u8(second, vqtbl1q_u8(low_table, vandq_u8(b, nibble)));
            second = vqaddq_u8(second, vqtbl1q_u8(high_table, vshrq_n_u8(b, 4)));
        }
        masks[group] = neon_mask(vcltq_u8(first, all)) | neon_mask(vcltq_u8(second, all)) << 16;
        count += static_cast<std::size_t>(__builtin_popcount(masks[group]));
    }
    return count;
}

#endif

std::atomic<const Kernel*>& chosen() {
    static std::atomic<const Kernel*> kernel{&available_kernels().front()};
    return kernel;
}

}  // namespace

const std::vector<Kernel>& available_kernels() {
    static const std::vector<Kernel> kernels = [] {
        std::vector<Kernel> found;
#ifdef OPQN_X86
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512f")) {
            found.push_back({"avx512", masks_avx512});
        }
        if (__builtin_cpu_supports("avx2")) found.push_back({"avx2", masks_avx2});
#endif
#ifdef OPQN_NEON
        found.push_back({"neon", masks_neon});
#endif
        found.push_back({"plain", masks_plain});
        return found;
    }();
    return kernels;
}

const Kernel& kernel() { return *chosen().load(std::memory_order_relaxed); }

void choose_kernel(const std::string& name) {
    const auto& kernels = available_kernels();
    const auto found =
        std::find_if(kernels.begin(), kernels.end(), [&](const Kernel& candidate) { return candidate.name == name; });
    if (found == kernels.end()) throw std::invalid_argument("this processor has no kernel " + name);
    chosen().store(&*found, std::memory_order_relaxed);
}

}  // namespace opqn
