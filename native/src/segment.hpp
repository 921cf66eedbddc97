// An immutable set of coded items, with the structures that search plans read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace opqn {

// Data that contradicts itself: it was changed or cut short after it was written.
struct CorruptError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline constexpr std::uint32_t kMaxItems = 1u << 24;  // positions of a segment are 24-bit numbers
inline constexpr std::uint32_t kBlock = 1u << 15;     // items of a block: its counters fit the first-level cache

struct Layout {
    std::uint32_t num_books;   // M
    std::uint32_t num_words;   // K
    std::uint32_t clique = 0;  // books of a group whose pairs all have cells: 0 (no pairs), or 2 or more
    bool has_lists = false;
    bool has_planes = false;

    std::uint32_t num_rows() const { return (num_books + 1) / 2; }                             // of the planes
    std::size_t num_cells() const { return static_cast<std::size_t>(num_words) * num_words; }  // of a pair
    // Words above 16 share nibbles: a nibble is the word's highest four bits.
    std::uint32_t nibble_shift() const {
        std::uint32_t shift = 0;
        while ((num_words >> shift) > 16) ++shift;
        return shift;
    }
    bool operator==(const Layout&) const = default;
    // The pairs (a, b), a < b, of each group of `clique` neighbouring books, in lexicographic order.
    std::vector<std::pair<std::uint32_t, std::uint32_t>> pairs() const;
};

// Codes by their words in one pair of books: the cell of words (i, j) is number i * K + j.
struct PairCells {
    std::span<const std::uint32_t> starts;    // (K * K + 1,) where each cell begins
    std::span<const std::uint8_t> positions;  // (3 U + 1,) 24-bit numbers of codes; empty where place i holds code i

    bool is_implicit() const { return positions.empty(); }
    std::uint32_t position(std::uint32_t place) const {
        if (is_implicit()) return place;
        std::uint32_t value;
        std::memcpy(&value, positions.data() + 3 * static_cast<std::size_t>(place), 4);
        return value & 0xFFFFFF;  // the arrays are little-endian, as is every machine this is built for
    }
};

// Items in the order of their codes; items of the same code, in the order of their ids. Where many share their codes
// each code is kept once, with the items that have it; all other structures are about codes and know nothing of items.
class Segment {
public:
    Segment(const Segment&) = delete;
    Segment& operator=(const Segment&) = delete;

    // Sorts and copies codes (n, M) and their ids (n,) into a segment.
    static std::shared_ptr<const Segment> build(const Layout& layout, const std::uint8_t* codes,
                                                const std::int64_t* ids, std::uint32_t size, unsigned num_threads);

    // The arrays a segment is made of, by name; see `arrays`.
    using Arrays = std::map<std::string, std::span<const std::uint8_t>>;
    // Takes a segment from such arrays, which `owner` keeps alive. Sizes are checked here and contents where they are
    // used, so that a damaged file gives an error or a wrong hit, and never a read outside of the arrays.
    static std::shared_ptr<const Segment> from_arrays(const Layout& layout, std::uint32_t size, std::int64_t first_id,
                                                      const Arrays& arrays, std::shared_ptr<void> owner);
    // codes, code_starts, narrow_ids or wide_ids, planes, list_starts, postings, and for pair p: starts.p and
    // positions.p. Empty ones are left out.
    Arrays arrays() const;

    std::uint32_t size() const { return size_; }            // items, n
    std::uint32_t num_codes() const { return num_codes_; }  // U
    const Layout& layout() const { return layout_; }
    std::int64_t first_id() const { return first_id_; }

    // The position of an item, or size() if there is none with this id.
    std::uint32_t find(std::int64_t id) const;

    const std::uint8_t* code(std::uint32_t number) const {
        return codes_.data() + static_cast<std::size_t>(number) * layout_.num_books;
    }
    // Positions of the items that have a code.
    std::pair<std::uint32_t, std::uint32_t> items(std::uint32_t number) const {
        if (code_starts_.empty()) return {number, number + 1};
        const std::uint32_t begin = code_starts_[number], end = code_starts_[number + 1];
        if (begin >= end || end > size_) throw CorruptError("a code of an index has no items");
        return {begin, end};
    }
    // Tell the processor that items() of a code will be wanted soon, and then the id of its first item.
    void prefetch_items(std::uint32_t number) const {
        if (!code_starts_.empty()) __builtin_prefetch(&code_starts_[number]);
    }
    void prefetch_ids(std::uint32_t number) const {
        const std::uint32_t position = code_starts_.empty() ? number : std::min(code_starts_[number], size_ - 1);
        if (wide_ids_.empty()) __builtin_prefetch(&narrow_ids_[position]);
        else __builtin_prefetch(&wide_ids_[position]);
    }
    std::int64_t id(std::uint32_t position) const {
        // Unsigned, as the sum may be anything in a damaged file.
        if (wide_ids_.empty())
            return static_cast<std::int64_t>(static_cast<std::uint64_t>(first_id_) + narrow_ids_[position]);
        return wide_ids_[position];
    }

    // (ceil(U / 32) * rows * 32,): see DeficitMasks.
    std::span<const std::uint8_t> planes() const { return planes_; }

    std::uint32_t num_blocks() const { return (num_codes_ + kBlock - 1) / kBlock; }
    // Places, in postings(), of the codes of a block that have word `word` in book `book`.
    std::pair<std::uint32_t, std::uint32_t> list(std::uint32_t block, std::uint32_t book, std::uint32_t word) const {
        const std::uint32_t* starts = list_starts_.data() + static_cast<std::size_t>(block) * num_lists();
        const std::uint32_t number = book * layout_.num_words + word;
        const std::uint32_t begin = starts[number], end = starts[number + 1];
        if (begin > end || end > num_block_postings(block)) throw CorruptError("a list of an index runs backwards");
        return {begin, end};
    }
    // Postings of a block: numbers of codes in the block.
    const std::uint16_t* postings(std::uint32_t block) const {
        return postings_.data() + static_cast<std::size_t>(block) * kBlock * layout_.num_books;
    }

    // The cells of the pair (a, b), a < b, or null.
    const PairCells* pair(std::uint32_t a, std::uint32_t b) const {
        const std::int32_t number = pair_numbers_[a * layout_.num_books + b];
        return number < 0 ? nullptr : &pairs_[static_cast<std::size_t>(number)];
    }
    std::pair<std::uint32_t, std::uint32_t> cell(const PairCells& pair, std::uint32_t number) const {
        const std::uint32_t begin = pair.starts[number], end = pair.starts[number + 1];
        if (begin > end || end > num_codes_) throw CorruptError("a cell of an index runs backwards");
        return {begin, end};
    }

    // Codes that have this word in this book; about as many, if the file is damaged or the book is in no pair.
    std::uint32_t word_count(std::uint32_t book, std::uint32_t word) const {
        std::call_once(words_counted_, [&] { count_words(); });
        return word_counts_[book * layout_.num_words + word];
    }

    std::size_t num_bytes() const;

private:
    Segment() = default;

    void number_pairs();
    void make_order() const;
    void count_words() const;
    std::size_t num_lists() const { return static_cast<std::size_t>(layout_.num_books) * layout_.num_words + 1; }
    std::uint32_t num_block_postings(std::uint32_t block) const {
        const std::uint32_t codes = std::min(kBlock, num_codes_ - block * kBlock);
        return codes * layout_.num_books;
    }

    template <class T>
    std::span<T> allocate(std::size_t count);

    void build_pairs(unsigned num_threads);
    void build_planes();
    void build_lists(unsigned num_threads);

    Layout layout_{};
    std::uint32_t size_ = 0, num_codes_ = 0;
    std::int64_t first_id_ = 0;
    std::span<const std::uint8_t> codes_;         // (U * M,)
    std::span<const std::uint32_t> code_starts_;  // (U + 1,) where a code's items begin; empty where each has one
    std::span<const std::uint32_t> narrow_ids_;   // (n,) less first_id_, or empty
    std::span<const std::int64_t> wide_ids_;      // (n,) where ids lie too far apart, or empty
    std::span<const std::uint8_t> planes_;
    std::span<const std::uint32_t> list_starts_;  // (blocks * (M * K + 1),) counted from the block's first posting
    std::span<const std::uint16_t> postings_;     // (U * M,)
    std::vector<PairCells> pairs_;
    std::vector<std::int32_t> pair_numbers_;     // (M * M,)
    std::vector<std::shared_ptr<void>> memory_;  // what the arrays lie in
    std::size_t num_bytes_ = 0;
    mutable std::once_flag words_counted_;
    mutable std::vector<std::uint32_t> word_counts_;  // (M * K,), made when first needed
    mutable std::once_flag order_made_;
    // Made when first needed: where ids lie close together one more than the position of each id from first_id_ on, or
    // 0; else positions by ascending id, (n,).
    mutable std::vector<std::uint32_t> order_;
    mutable bool is_direct_ = false;
};

}  // namespace opqn
