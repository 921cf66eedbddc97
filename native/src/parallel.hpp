// Work shared by a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace opqn {

// Calls work(0) .. work(count - 1), each once, on up to num_threads threads; 0 takes all there are. The first exception
// is passed on after all threads have ended.
template <class Work>
void parallel_for(std::size_t count, unsigned num_threads, Work&& work) {
    if (num_threads == 0) num_threads = std::max(1u, std::thread::hardware_concurrency());
    num_threads = static_cast<unsigned>(std::min<std::size_t>(num_threads, count));
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    const auto run = [&] {
        try {
            for (std::size_t i = next++; i < count; i = next++) work(i);
        } catch (...) {
            next = count;
            const std::lock_guard guard(failure_lock);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    try {
        for (unsigned i = 1; i < num_threads; ++i) threads.emplace_back(run);
    } catch (const std::system_error&) {
        // No more threads to be had: those there are do the work.
    }
    run();
    for (auto& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace opqn
