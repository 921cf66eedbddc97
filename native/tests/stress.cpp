// Runs the core under a sanitizer, without Python: random segments against a sort of everything, damaged arrays,
// threads. Usage: stress SEED ROUNDS. Prints what went wrong and returns 1, or returns 0.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "../src/kernels.hpp"
#include "../src/query.hpp"
#include "../src/search.hpp"
#include "../src/segment.hpp"
#include "../src/topk.hpp"

using namespace opqn;

namespace {

using Random = std::mt19937_64;

struct Case {
    Layout layout;
    std::vector<std::uint8_t> codes;  // (n, M)
    std::vector<std::int64_t> ids;
    std::vector<float> table;  // (M, K)
    std::size_t k;

    std::uint32_t size() const { return static_cast<std::uint32_t>(ids.size()); }
};

std::uint32_t below(Random& random, std::uint32_t limit) { return static_cast<std::uint32_t>(random() % limit); }

Case draw(Random& random) {
    static constexpr std::uint32_t kWords[] = {2, 4, 16, 32, 256};
    Case drawn;
    drawn.layout.num_books = 1 + below(random, 10);
    drawn.layout.num_words = kWords[below(random, 5)];
    drawn.layout.clique = 2 * below(random, 5);
    drawn.layout.has_lists = below(random, 4) > 0;
    drawn.layout.has_planes = below(random, 4) > 0;
    const std::uint32_t books = drawn.layout.num_books, words = drawn.layout.num_words;
    const std::uint32_t size = below(random, 4) ? below(random, 500) : below(random, 40000);
    std::vector<std::uint8_t> person(books);
    for (std::uint32_t i = 0; i < size; ++i) {
        if (i % 20 == 0) std::generate(person.begin(), person.end(), [&] { return below(random, words); });
        for (std::uint32_t m = 0; m < books; ++m) {
            drawn.codes.push_back(below(random, 10) ? person[m] : static_cast<std::uint8_t>(below(random, words)));
        }
        drawn.ids.push_back(static_cast<std::int64_t>(i) << below(random, 2) * 34);
    }
    for (std::uint32_t i = 0; i < size; ++i) drawn.ids[i] = drawn.ids[i] * 2 + (drawn.ids[i] > 0xFFFFFFFF);
    std::uniform_real_distribution<float> uniform(0, 1);
    const std::uint32_t kind = below(random, 4);
    for (std::uint32_t m = 0; m < books; ++m) {
        for (std::uint32_t j = 0; j < words; ++j) {
            const float value = uniform(random);
            drawn.table.push_back(kind == 0 ? value : kind == 1 ? std::floor(2 * value) : value * 0.01f);
        }
        const std::uint8_t best = person[m];
        if (kind >= 2) drawn.table[m * words + best] = 1;
    }
    drawn.k = 1 + below(random, 60);
    return drawn;
}

std::vector<Hit> sort_all(const Case& drawn, Query& query) {
    std::vector<Hit> hits;
    for (std::uint32_t i = 0; i < drawn.size(); ++i) {
        hits.push_back({query.score(drawn.codes.data() + i * drawn.layout.num_books), drawn.ids[i]});
    }
    std::sort(hits.begin(), hits.end());
    hits.resize(std::min(hits.size(), drawn.k));
    return hits;
}

bool same(const std::vector<Hit>& a, const std::vector<Hit>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const Hit& x, const Hit& y) { return x.score == y.score && x.id == y.id; });
}

// Hits of two queries that go together: the drawn one and one that scores the other way round.
std::vector<std::vector<Hit>> find(const std::vector<const Segment*>& segments, const Case& drawn, Plan plan) {
    std::vector<Part> parts;
    for (const Segment* segment : segments) parts.push_back({segment, {}, 0});
    std::vector<float> other;
    for (float value : drawn.table) other.push_back(1 - value);
    std::deque<Trace> traces;
    std::vector<Job> jobs;
    for (const std::vector<float>* table : {&drawn.table, static_cast<const std::vector<float>*>(&other)}) {
        jobs.push_back(
            {Query(table->data(), drawn.layout.num_books, drawn.layout.num_words), Collector::best(drawn.k), &traces});
    }
    Scratch scratch;
    search(Group::of(parts), jobs, plan, scratch);
    std::vector<std::vector<Hit>> found;
    for (Job& job : jobs) found.push_back(job.found.take());
    return found;
}

bool plans_agree(const Case& drawn, const Segment& segment, const Segment& first, const Segment& rest) {
    Query query(drawn.table.data(), drawn.layout.num_books, drawn.layout.num_words);
    const auto expected = sort_all(drawn, query);
    const auto others = find({&segment}, drawn, Plan::kScan)[1];
    for (const Kernel& kernel : available_kernels()) {
        choose_kernel(kernel.name);
        for (int plan = 0; plan <= static_cast<int>(Plan::kNumPlans); ++plan) {
            if (static_cast<Plan>(plan) == Plan::kAllowed) continue;
            for (const auto& segments : {std::vector{&segment}, std::vector{&first, &rest}}) {
                const auto found = find(segments, drawn, static_cast<Plan>(plan));
                if (!same(found[0], expected) || !same(found[1], others)) {
                    std::printf("plan %s, kernel %s: other hits\n", name_of(static_cast<Plan>(plan)),
                                kernel.name.c_str());
                    return false;
                }
            }
        }
    }
    for (std::uint32_t i = 0; i < drawn.size(); i += 7) {
        const std::uint32_t position = segment.find(drawn.ids[i]);
        if (position >= segment.size() || segment.id(position) != drawn.ids[i])
            return std::puts("an id is lost"), false;
    }
    return true;
}

// Arrays of exactly their size, so that a read beyond one is noticed, with some bytes changed.
void search_damaged(Random& random, const Case& drawn, const Segment& segment) {
    auto copies = std::make_shared<std::vector<std::vector<std::uint8_t>>>();
    copies->reserve(segment.arrays().size());
    Segment::Arrays arrays;
    for (const auto& [name, bytes] : segment.arrays()) {
        auto& copy = copies->emplace_back(bytes.begin(), bytes.end());
        if (below(random, 2)) {
            const std::uint32_t changes = 1 + below(random, static_cast<std::uint32_t>(copy.size()));
            for (std::uint32_t i = 0; i < changes; ++i)
                copy[random() % copy.size()] = static_cast<std::uint8_t>(random());
        }
        arrays[name] = copy;
    }
    try {
        const auto damaged = Segment::from_arrays(drawn.layout, segment.size(), segment.first_id(), arrays, copies);
        for (int plan = 0; plan <= static_cast<int>(Plan::kNumPlans); ++plan) {
            try {
                find({damaged.get()}, drawn, static_cast<Plan>(plan));
            } catch (const CorruptError&) {
            }
        }
        for (std::int64_t id : drawn.ids) damaged->find(id);
    } catch (const CorruptError&) {
    }
}

bool threads_agree(const Case& drawn, const Segment& segment) {
    const auto expected = find({&segment}, drawn, Plan::kScan)[0];
    std::atomic<bool> agree{true};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 5; ++i) {
                if (!same(find({&segment}, drawn, Plan::kNumPlans)[0], expected)) agree = false;
                if (drawn.size()) segment.find(drawn.ids[0]);
            }
        });
    }
    for (auto& thread : threads) thread.join();
    if (!agree) std::puts("threads found other hits");
    return agree;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return std::puts("usage: stress SEED ROUNDS"), 2;
    Random random(std::strtoull(arguments[1], nullptr, 10));
    for (int round = std::atoi(arguments[2]); round > 0; --round) {
        const Case drawn = draw(random);
        const auto segment = Segment::build(drawn.layout, drawn.codes.data(), drawn.ids.data(), drawn.size(), 2);
        const std::uint32_t cut = drawn.size() / 3;
        const std::uint8_t* codes = drawn.codes.data();
        const auto first = Segment::build(drawn.layout, codes, drawn.ids.data(), cut, 1);
        const auto rest = Segment::build(drawn.layout, codes + cut * drawn.layout.num_books, drawn.ids.data() + cut,
                                         drawn.size() - cut, 1);
        if (!plans_agree(drawn, *segment, *first, *rest) || !threads_agree(drawn, *segment)) return 1;
        if (drawn.size()) search_damaged(random, drawn, *segment);
    }
    return 0;
}
