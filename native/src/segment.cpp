#include "segment.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <numeric>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "kernels.hpp"
#include "parallel.hpp"

namespace opqn {

std::vector<std::pair<std::uint32_t, std::uint32_t>> Layout::pairs() const {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> found;
    if (clique < 2) return found;
    for (std::uint32_t first = 0; first < num_books; first += clique) {
        const std::uint32_t last = std::min(first + clique, num_books);
        for (std::uint32_t a = first; a < last; ++a) {
            for (std::uint32_t b = a + 1; b < last; ++b) found.emplace_back(a, b);
        }
    }
    return found;
}

namespace {

// Items are read in random order, so nearly each one would miss the processor's table of small pages.
void* allocate_pages(std::size_t bytes) {
    constexpr std::size_t kHugePage = 1u << 21;
    const bool is_large = bytes >= 4 * kHugePage;
    const std::size_t alignment = is_large ? kHugePage : 64;
    void* memory =
        std::aligned_alloc(alignment, (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment * alignment);
    if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (is_large) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

}  // namespace

template <class T>
std::span<T> Segment::allocate(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    std::shared_ptr<void> memory(allocate_pages(bytes), std::free);
    memory_.push_back(memory);
    num_bytes_ += bytes;
    return {static_cast<T*>(memory.get()), count};
}

std::size_t Segment::num_bytes() const { return num_bytes_; }

namespace {

// How many items have each word of each book: (M, K).
std::vector<std::uint32_t> count_all_words(const std::uint8_t* codes, std::uint32_t size, const Layout& layout) {
    std::vector<std::uint32_t> counts(layout.num_books * layout.num_words);
    for (std::uint32_t i = 0; i < size; ++i, codes += layout.num_books) {
        for (std::uint32_t m = 0; m < layout.num_books; ++m) ++counts[m * layout.num_words + codes[m]];
    }
    return counts;
}

// Sorts items by their cell of words (a, b), those of a cell by position: fills starts (K * K + 1,) and calls
// put(place, position) for each item. Sorting by one word after the other writes to K places at a time, which a cache
// can hold, and not to K * K.
template <class Put>
void sort_by_cell(const std::uint8_t* codes, std::uint32_t size, const Layout& layout,
                  std::span<const std::uint32_t> counts, std::uint32_t a, std::uint32_t b,
                  std::span<std::uint32_t> starts, Put&& put) {
    static_assert(kMaxItems <= 1u << 24, "a position and a word share 32 bits");
    const std::uint32_t words = layout.num_words;
    std::vector<std::uint32_t> next(words), sorted(size);
    std::exclusive_scan(counts.begin() + b * words, counts.begin() + (b + 1) * words, next.begin(), 0u);
    const std::uint8_t* code = codes;
    for (std::uint32_t i = 0; i < size; ++i, code += layout.num_books) {
        sorted[next[code[b]]++] = static_cast<std::uint32_t>(code[a]) << 24 | i;
    }
    std::exclusive_scan(counts.begin() + a * words, counts.begin() + (a + 1) * words, next.begin(), 0u);
    std::uint32_t place = 0;
    for (std::uint32_t j = 0; j < words; ++j) {
        for (std::uint32_t i = 0; i < words; ++i) starts[i * words + j] = next[i];
        for (const std::uint32_t end = place + counts[b * words + j]; place < end; ++place) {
            put(next[sorted[place] >> 24]++, sorted[place] & 0xFFFFFF);
        }
    }
    starts[words * words] = size;
}

void store24(std::uint8_t* place, std::uint32_t value) {
    place[0] = static_cast<std::uint8_t>(value);
    place[1] = static_cast<std::uint8_t>(value >> 8);
    place[2] = static_cast<std::uint8_t>(value >> 16);
}

// Positions in `codes` by code, then by id.
std::vector<std::uint32_t> sort_items(const std::uint8_t* codes, const std::int64_t* ids, std::uint32_t size,
                                      const Layout& layout, unsigned num_threads) {
    const std::size_t books = layout.num_books;
    // First by two words, without comparisons; then the items of each such cell.
    const std::uint32_t second = books > 1 ? 1 : 0;
    std::vector<std::uint32_t> order(size), starts(layout.num_cells() + 1);
    sort_by_cell(codes, size, layout, count_all_words(codes, size, layout), 0, second, starts,
                 [&](std::uint32_t place, std::uint32_t position) { order[place] = position; });
    struct Key {
        std::uint64_t words;  // of the next books, most significant first
        std::uint32_t position;
    };
    const std::size_t first = second + 1, last = std::min(books, first + 8);
    const auto comes_first = [&](const Key& x, const Key& y) {
        if (x.words != y.words) return x.words < y.words;
        if (last < books) {
            const int rest =
                std::memcmp(codes + x.position * books + last, codes + y.position * books + last, books - last);
            if (rest != 0) return rest < 0;
        }
        return ids[x.position] < ids[y.position];
    };
    parallel_for(layout.num_words, num_threads, [&](std::size_t word) {
        std::vector<Key> keys;
        for (std::size_t cell = word * layout.num_words; cell < (word + 1) * layout.num_words; ++cell) {
            keys.clear();
            for (std::uint32_t place = starts[cell]; place < starts[cell + 1]; ++place) {
                const std::uint8_t* code = codes + order[place] * books;
                std::uint64_t words = 0;
                for (std::size_t m = first; m < last; ++m) words = words << 8 | code[m];
                keys.push_back({words, order[place]});
            }
            std::sort(keys.begin(), keys.end(), comes_first);
            for (std::size_t i = 0; i < keys.size(); ++i) order[starts[cell] + i] = keys[i].position;
        }
    });
    return order;
}

}  // namespace

std::shared_ptr<const Segment> Segment::build(const Layout& layout, const std::uint8_t* codes, const std::int64_t* ids,
                                              std::uint32_t size, unsigned num_threads) {
    if (size > kMaxItems) throw std::invalid_argument("a segment holds at most 2^24 items");
    std::shared_ptr<Segment> segment(new Segment);
    segment->layout_ = layout;
    segment->size_ = size;
    const std::size_t books = layout.num_books;
    // Without structures it is a tail, which is made anew with every addition: nothing is sorted then.
    const bool is_sorted = layout.has_planes || layout.has_lists || layout.clique;
    std::vector<std::uint32_t> order;
    if (is_sorted) order = sort_items(codes, ids, size, layout, num_threads);
    const auto code_of = [&](std::uint32_t place) { return codes + order[place] * books; };
    const auto is_new = [&](std::uint32_t place) {
        return place == 0 || std::memcmp(code_of(place), code_of(place - 1), books) != 0;
    };
    std::uint32_t num_distinct = is_sorted ? 0 : size;
    for (std::uint32_t i = 0; is_sorted && i < size; ++i) num_distinct += is_new(i);
    // Where hardly two items share a code it takes less to keep a code for each item.
    const bool is_shared = num_distinct <= size / 4 * 3;
    segment->num_codes_ = is_shared ? num_distinct : size;
    auto own_codes = segment->allocate<std::uint8_t>(segment->num_codes_ * books);
    auto starts = segment->allocate<std::uint32_t>(is_shared ? num_distinct + 1 : 0);
    if (!is_sorted && size) std::memcpy(own_codes.data(), codes, size * books);
    std::uint32_t number = 0;
    for (std::uint32_t i = 0; is_sorted && i < size; ++i) {
        if (is_shared && !is_new(i)) continue;
        std::memcpy(own_codes.data() + number * books, code_of(i), books);
        if (is_shared) starts[number] = i;
        ++number;
    }
    if (is_shared) starts[num_distinct] = size;
    segment->codes_ = own_codes;
    segment->code_starts_ = starts;

    std::int64_t low = size ? ids[0] : 0, high = low;
    for (std::uint32_t i = 0; i < size; ++i) low = std::min(low, ids[i]), high = std::max(high, ids[i]);
    const auto id_of = [&](std::uint32_t place) { return ids[is_sorted ? order[place] : place]; };
    segment->first_id_ = low;
    if (high - low <= 0xFFFFFFFF) {
        auto narrow = segment->allocate<std::uint32_t>(size);
        for (std::uint32_t i = 0; i < size; ++i) narrow[i] = static_cast<std::uint32_t>(id_of(i) - low);
        segment->narrow_ids_ = narrow;
    } else {
        auto wide = segment->allocate<std::int64_t>(size);
        for (std::uint32_t i = 0; i < size; ++i) wide[i] = id_of(i);
        segment->wide_ids_ = wide;
    }
    segment->number_pairs();
    if (!segment->pairs_.empty()) segment->build_pairs(num_threads);
    if (layout.has_planes) segment->build_planes();
    if (layout.has_lists) segment->build_lists(num_threads);
    return segment;
}

void Segment::build_pairs(unsigned num_threads) {
    const auto pairs = layout_.pairs();
    const auto counts = count_all_words(codes_.data(), num_codes_, layout_);
    std::vector<std::span<std::uint32_t>> starts;
    std::vector<std::span<std::uint8_t>> positions;
    for (std::size_t p = 0; p < pairs.size(); ++p) {
        starts.push_back(allocate<std::uint32_t>(layout_.num_cells() + 1));
        // Codes lie in the order of the first pair's cells, which therefore need no positions.
        positions.push_back(allocate<std::uint8_t>(p ? 3 * static_cast<std::size_t>(num_codes_) + 1 : 0));
        pairs_[p] = {starts.back(), positions.back()};
    }
    parallel_for(pairs.size(), num_threads, [&](std::size_t p) {
        std::uint8_t* to = positions[p].data();
        sort_by_cell(codes_.data(), num_codes_, layout_, counts, pairs[p].first, pairs[p].second, starts[p],
                     [&](std::uint32_t place, std::uint32_t number) {
                         if (p) store24(to + 3 * static_cast<std::size_t>(place), number);
                     });
        if (p) positions[p].back() = 0;
    });
}

void Segment::number_pairs() {
    const auto pairs = layout_.pairs();
    pair_numbers_.assign(static_cast<std::size_t>(layout_.num_books) * layout_.num_books, -1);
    pairs_.resize(pairs.size());
    for (std::size_t p = 0; p < pairs.size(); ++p) {
        pair_numbers_[pairs[p].first * layout_.num_books + pairs[p].second] = static_cast<std::int32_t>(p);
    }
}

Segment::Arrays Segment::arrays() const {
    Arrays found;
    const auto put = [&](const std::string& name, auto values) {
        if (!values.empty()) {
            found[name] = {reinterpret_cast<const std::uint8_t*>(values.data()), values.size_bytes()};
        }
    };
    put("codes", codes_);
    put("code_starts", code_starts_);
    put("narrow_ids", narrow_ids_);
    put("wide_ids", wide_ids_);
    put("planes", planes_);
    put("list_starts", list_starts_);
    put("postings", postings_);
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
        put("starts." + std::to_string(p), pairs_[p].starts);
        put("positions." + std::to_string(p), pairs_[p].positions);
    }
    return found;
}

std::shared_ptr<const Segment> Segment::from_arrays(const Layout& layout, std::uint32_t size, std::int64_t first_id,
                                                    const Arrays& arrays, std::shared_ptr<void> owner) {
    if (size > kMaxItems) throw CorruptError("a segment claims more items than one can hold");
    std::shared_ptr<Segment> segment(new Segment);
    segment->layout_ = layout;
    segment->size_ = size;
    segment->first_id_ = first_id;
    segment->memory_.push_back(std::move(owner));
    segment->number_pairs();
    std::size_t num_taken = 0;
    const auto take = [&]<class T>(std::span<const T>& values, const std::string& name, std::size_t count) {
        const auto found = arrays.find(name);
        const std::span<const std::uint8_t> bytes =
            found == arrays.end() ? std::span<const std::uint8_t>() : found->second;
        if (bytes.size() != count * sizeof(T))
            throw CorruptError("the array " + name + " of a segment has the wrong size");
        if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(T))
            throw CorruptError("the array " + name + " is not aligned");
        values = {reinterpret_cast<const T*>(bytes.data()), count};
        num_taken += found != arrays.end();
        segment->num_bytes_ += bytes.size();
    };
    const std::size_t books = layout.num_books;
    const auto found = arrays.find("code_starts");
    const std::size_t n = found == arrays.end() ? size : found->second.size() / sizeof(std::uint32_t) - 1;
    if (n > size || (size && n == 0)) throw CorruptError("a segment has not as many codes as items");
    segment->num_codes_ = static_cast<std::uint32_t>(n);
    const bool is_narrow = !arrays.contains("wide_ids");
    take(segment->codes_, "codes", n * books);
    take(segment->code_starts_, "code_starts", found == arrays.end() ? 0 : n + 1);
    take(segment->narrow_ids_, "narrow_ids", is_narrow ? size : 0);
    take(segment->wide_ids_, "wide_ids", is_narrow ? 0 : size);
    take(segment->planes_, "planes", layout.has_planes ? (n + kGroup - 1) / kGroup * layout.num_rows() * kGroup : 0);
    take(segment->list_starts_, "list_starts", layout.has_lists ? segment->num_blocks() * segment->num_lists() : 0);
    take(segment->postings_, "postings", layout.has_lists ? n * books : 0);
    for (std::size_t p = 0; p < segment->pairs_.size(); ++p) {
        take(segment->pairs_[p].starts, "starts." + std::to_string(p), layout.num_cells() + 1);
        if (p) take(segment->pairs_[p].positions, "positions." + std::to_string(p), 3 * n + 1);
    }
    if (num_taken != arrays.size()) throw CorruptError("a segment has arrays that do not belong to it");
    return segment;
}

void Segment::make_order() const {
    std::int64_t highest = first_id_;
    for (std::uint32_t i = 0; i < size_; ++i) highest = std::max(highest, id(i));
    const std::uint64_t range = static_cast<std::uint64_t>(highest) - static_cast<std::uint64_t>(first_id_) + 1;
    is_direct_ = !narrow_ids_.empty() && range <= 4 * static_cast<std::uint64_t>(size_);
    if (is_direct_) {
        order_.assign(range, 0);
        for (std::uint32_t i = 0; i < size_; ++i) order_[narrow_ids_[i]] = i + 1;
        return;
    }
    order_.resize(size_);
    std::iota(order_.begin(), order_.end(), 0);
    std::sort(order_.begin(), order_.end(), [&](std::uint32_t a, std::uint32_t b) { return id(a) < id(b); });
}

void Segment::count_words() const {
    const std::uint32_t words = layout_.num_words;
    word_counts_.assign(static_cast<std::size_t>(layout_.num_books) * words, (num_codes_ + words - 1) / words);
    for (std::uint32_t a = 0; a + 1 < layout_.num_books; a += 2) {
        const PairCells* cells = pair(a, a + 1);
        if (!cells) continue;
        std::uint32_t* counts = word_counts_.data() + a * words;
        std::fill(counts, counts + 2 * words, 0);
        for (std::uint32_t i = 0; i < words; ++i) {
            for (std::uint32_t j = 0; j < words; ++j) {
                const std::uint32_t count = cells->starts[i * words + j + 1] - cells->starts[i * words + j];
                counts[i] += count;
                counts[words + j] += count;
            }
        }
    }
}

std::uint32_t Segment::find(std::int64_t id) const {
    std::call_once(order_made_, [&] { make_order(); });
    if (is_direct_) {
        const std::uint64_t number = static_cast<std::uint64_t>(id) - static_cast<std::uint64_t>(first_id_);
        return number < order_.size() && order_[number] ? order_[number] - 1 : size_;
    }
    const auto place =
        std::lower_bound(order_.begin(), order_.end(), id,
                         [&](std::uint32_t position, std::int64_t wanted) { return this->id(position) < wanted; });
    return place != order_.end() && this->id(*place) == id ? *place : size_;
}

void Segment::build_planes() {
    const std::size_t rows = layout_.num_rows();
    const std::size_t groups = (num_codes_ + kGroup - 1) / kGroup;
    auto planes = allocate<std::uint8_t>(groups * rows * kGroup);
    std::fill(planes.begin(), planes.end(), 0);
    const std::uint32_t shift = layout_.nibble_shift();
    for (std::uint32_t i = 0; i < num_codes_; ++i) {
        std::uint8_t* group = planes.data() + i / kGroup * rows * kGroup + i % kGroup;
        const std::uint8_t* own = code(i);
        for (std::uint32_t m = 0; m < layout_.num_books; ++m) {
            group[m / 2 * kGroup] |= static_cast<std::uint8_t>(own[m] >> shift << (m % 2 * 4));
        }
    }
    planes_ = planes;
}

void Segment::build_lists(unsigned num_threads) {
    auto all_starts = allocate<std::uint32_t>(num_blocks() * num_lists());
    auto postings = allocate<std::uint16_t>(static_cast<std::size_t>(num_codes_) * layout_.num_books);
    parallel_for(num_blocks(), num_threads, [&](std::size_t block) {
        const auto begin = static_cast<std::uint32_t>(block) * kBlock, end = std::min(begin + kBlock, num_codes_);
        auto starts = all_starts.subspan(block * num_lists(), num_lists());
        std::fill(starts.begin(), starts.end(), 0);
        for (std::uint32_t i = begin; i < end; ++i) {
            for (std::uint32_t m = 0; m < layout_.num_books; ++m) ++starts[m * layout_.num_words + code(i)[m] + 1];
        }
        std::partial_sum(starts.begin(), starts.end(), starts.begin());
        std::vector<std::uint32_t> next(starts.begin(), starts.end());
        std::uint16_t* to = postings.data() + static_cast<std::size_t>(begin) * layout_.num_books;
        for (std::uint32_t i = begin; i < end; ++i) {
            for (std::uint32_t m = 0; m < layout_.num_books; ++m) {
                to[next[m * layout_.num_words + code(i)[m]]++] = static_cast<std::uint16_t>(i - begin);
            }
        }
    });
    list_starts_ = all_starts;
    postings_ = postings;
}

}  // namespace opqn
