// The best k hits of a query, in the one defined order: by score, highest first, then by id, lowest first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace opqn {

struct Hit {
    float score;
    std::int64_t id;

    friend bool operator<(const Hit& a, const Hit& b) {  // "comes before"
        return a.score > b.score || (a.score == b.score && a.id < b.id);
    }
};

// Ids met before; open addressing, emptied in the time it took to fill.
class IdSet {
public:
    IdSet() : slots_(64, kEmpty) {}

    // True if the id was not in the set.
    bool insert(std::int64_t id) {
        if (2 * (size_ + 1) > slots_.size()) grow();
        std::size_t place = home(id);
        while (slots_[place] != kEmpty) {
            if (slots_[place] == id) return false;
            place = (place + 1) & (slots_.size() - 1);
        }
        slots_[place] = id;
        ++size_;
        return true;
    }

private:
    static constexpr std::int64_t kEmpty = -1;  // ids are never negative

    std::size_t home(std::int64_t id) const {
        return (static_cast<std::uint64_t>(id) * 0x9E3779B97F4A7C15ull >> 20) & (slots_.size() - 1);
    }

    void grow() {
        std::vector<std::int64_t> old(2 * slots_.size(), kEmpty);
        old.swap(slots_);
        for (std::int64_t id : old) {
            if (id == kEmpty) continue;
            std::size_t place = home(id);
            while (slots_[place] != kEmpty) place = (place + 1) & (slots_.size() - 1);
            slots_[place] = id;
        }
    }

    std::vector<std::int64_t> slots_;
    std::size_t size_ = 0;
};

// Collects hits. An item may be offered more than once, by plans that meet it in several lists; it is kept once.
class Collector {
public:
    // The k best.
    static Collector best(std::size_t k) { return Collector(k, -std::numeric_limits<float>::infinity()); }
    // Everything that scores `threshold` or more.
    static Collector within(float threshold) { return Collector(std::numeric_limits<std::size_t>::max(), threshold); }

    // No item that scores less can change the result. An item that scores exactly this still can, by a lower id.
    float floor() const { return floor_; }
    // Of items that score exactly the floor only those with a lower id can.
    std::int64_t floor_id() const {
        return hits_.size() < k_ ? std::numeric_limits<std::int64_t>::max() : hits_.front().id;
    }
    bool full() const { return hits_.size() >= k_ || floor_ > -std::numeric_limits<float>::infinity(); }
    std::size_t wanted() const { return k_; }

    // Whether a hit would be taken, if it is not there yet.
    bool wants(const Hit& hit) const { return hits_.size() < k_ ? hit.score >= floor_ : hit < hits_.front(); }

    void offer(const Hit& hit) {
        if (!wants(hit) || !met_.insert(hit.id)) return;
        if (hits_.size() >= k_) {
            std::pop_heap(hits_.begin(), hits_.end());
            hits_.back() = hit;
        } else {
            hits_.push_back(hit);
        }
        std::push_heap(hits_.begin(), hits_.end());
        if (hits_.size() >= k_) floor_ = hits_.front().score;
    }

    // The hits in order; the collector is used up.
    std::vector<Hit> take() {
        std::sort_heap(hits_.begin(), hits_.end());
        return std::move(hits_);
    }

private:
    Collector(std::size_t k, float floor) : k_(k), floor_(floor) {}

    std::size_t k_;
    float floor_;
    std::vector<Hit> hits_;  // a heap whose front is the last in order
    IdSet met_;              // evicted ones stay: they would not be taken again
};

}  // namespace opqn
