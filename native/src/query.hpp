// A query: its lookup table, and what is known of it before any item is looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace opqn {

struct Word {
    float value;
    std::uint32_t word;
};

class Query {
public:
    // table: (M, K) float32, row by row, without NaN.
    Query(const float* table, std::uint32_t num_books, std::uint32_t num_words);

    const float* table() const { return table_.data(); }
    std::uint32_t num_books() const { return num_books_; }
    std::uint32_t num_words() const { return num_words_; }

    // Whether sums of entries can be reasoned about. Where entries are infinite or huge only a full scan is exact.
    bool is_finite() const { return is_finite_; }
    float highest(std::uint32_t book) const { return highest_[book]; }
    double sum_of_highest() const { return sum_of_highest_; }
    double sum_of_means() const { return sum_of_means_; }
    // A score is a sum of M float32, rounded after each addition; it differs from the true sum by less than this.
    double slack() const { return slack_; }

    // The i-th word of a book, by value, highest first (0 before -0), then by number. i < K.
    Word ranked(std::uint32_t book, std::uint32_t i) {
        if (i >= ranked_[book].size()) rank_more(book, i + 1);
        return ranked_[book][i];
    }

    // The score of a code, to the bit.
    float score(const std::uint8_t* code) const {
        float sum = table_[code[0]];
        const float* row = table_.data() + num_words_;
        for (std::uint32_t m = 1; m < num_books_; ++m, row += num_words_) sum += row[code[m]];
        return sum;
    }

private:
    void rank_first(std::uint32_t book);
    void rank_more(std::uint32_t book, std::uint32_t least);
    void keep(std::uint32_t book, std::span<const std::uint64_t> keys);

    std::vector<float> table_;  // (M * K,), and as much more as a code that is no code can reach
    std::uint32_t num_books_, num_words_;
    bool is_finite_;
    double sum_of_highest_ = 0, sum_of_means_ = 0, slack_ = 0;
    std::vector<float> highest_;             // (M,)
    std::vector<std::vector<Word>> ranked_;  // (M, as many as were asked for)
};

}  // namespace opqn
