#include "query.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>

namespace opqn {
namespace {

constexpr std::uint32_t kLanes = 32;  // strided sets of words whose maxima choose the first ranked ones
constexpr std::uint32_t kMostWords = 256;
constexpr std::uint32_t kFirst = 8;  // words ranked at least; a peaked row needs no more

// Numbers that are in order where words are: by value, highest first, then by number.
std::uint64_t key_of(float value, std::uint32_t word) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t ascending =
        bits ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31) | 0x80000000u);
    return static_cast<std::uint64_t>(~ascending) << 32 | word;
}

}  // namespace

Query::Query(const float* table, std::uint32_t num_books, std::uint32_t num_words)
    : table_(table, table + num_books * num_words),
      num_books_(num_books),
      num_words_(num_words),
      highest_(num_books),
      ranked_(num_books) {
    table_.resize(table_.size() + 256, 0.0f);
    double largest_sum = 0;
    for (std::uint32_t m = 0; m < num_books; ++m) {
        const float* row = table + m * num_words;
        float low = row[0], high = row[0], sum = 0;
        for (std::uint32_t j = 0; j < num_words; ++j) {
            low = row[j] < low ? row[j] : low;
            high = row[j] > high ? row[j] : high;
            sum += row[j];
        }
        sum_of_means_ += sum / static_cast<float>(num_words);
        highest_[m] = high;
        sum_of_highest_ += high;
        largest_sum += std::max(std::abs(static_cast<double>(low)), std::abs(static_cast<double>(high)));
    }
    is_finite_ = largest_sum < 1e38;
    // Each of the M - 1 additions errs by at most 2^-24 of a sum that is at most largest_sum; twice that covers the
    // rounding of the bounds themselves, which are computed in double.
    slack_ = largest_sum * num_books * 0x1p-23;
    if (is_finite_) {
        for (std::uint32_t m = 0; m < num_books; ++m) rank_first(m);
    }
}

void Query::rank_first(std::uint32_t book) {
    const float* row = table_.data() + book * num_words_;
    if (num_words_ <= 2 * kLanes) {
        rank_more(book, num_words_);
        return;
    }
    // The maxima of disjoint sets of words: their eighth highest is reached by eight words at least, and by few more.
    float lanes[kLanes];
    std::copy(row, row + kLanes, lanes);
    for (std::uint32_t j = kLanes; j < num_words_; j += kLanes) {
        for (std::uint32_t i = 0; i < kLanes; ++i) lanes[i] = row[j + i] > lanes[i] ? row[j + i] : lanes[i];
    }
    std::nth_element(lanes, lanes + kFirst - 1, lanes + kLanes, std::greater<>());
    const float cut = lanes[kFirst - 1];
    std::array<std::uint64_t, kMostWords> keys;
    std::size_t count = 0;
    for (std::uint32_t j = 0; j < num_words_; ++j) {
        if (row[j] >= cut) keys[count++] = key_of(row[j], j);
    }
    std::sort(keys.begin(), keys.begin() + count);
    keep(book, {keys.data(), count});
}

void Query::rank_more(std::uint32_t book, std::uint32_t least) {
    const float* row = table_.data() + book * num_words_;
    const std::uint32_t count =
        std::min(std::max(least, static_cast<std::uint32_t>(3 * ranked_[book].size())), num_words_);
    std::array<std::uint64_t, kMostWords> keys;
    for (std::uint32_t j = 0; j < num_words_; ++j) keys[j] = key_of(row[j], j);
    if (count < num_words_) std::nth_element(keys.begin(), keys.begin() + count, keys.begin() + num_words_);
    std::sort(keys.begin(), keys.begin() + count);
    keep(book, {keys.data(), count});
}

void Query::keep(std::uint32_t book, std::span<const std::uint64_t> keys) {
    auto& ranked = ranked_[book];
    ranked.clear();
    ranked.reserve(keys.size());
    for (const std::uint64_t key : keys) {
        const auto word = static_cast<std::uint32_t>(key);
        ranked.push_back({table_[book * num_words_ + word], word});
    }
}

}  // namespace opqn
