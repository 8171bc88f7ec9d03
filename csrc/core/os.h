// Everything the core asks of the operating system; one implementation per system (os_linux.cpp, os_darwin.cpp, os_win32.cpp).
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

namespace quantune::os {

// Sleeps while *word == expected, until wake_all(word), a spurious wake-up, or the timeout (milliseconds, negative: none).
// False when the timeout passed.
bool wait_while_equal(std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ms);
void wake_all(std::atomic<uint32_t>* word);

void yield_thread();
int64_t monotonic_ns();
void name_thread(const char* name);

// The cores this process may use: the scheduler's mask and, in a container, the share of time it is given.
int usable_cores();

// 64-byte aligned memory. Large blocks come straight from the system and go straight back to it.
void* allocate(int64_t bytes);
void release(void* data, int64_t bytes);
int64_t total_memory();
int64_t free_memory();

// A read-only map of a whole file. `error` explains a null result.
struct FileMap {
  const uint8_t* data;
  int64_t bytes;
  intptr_t handle;
};
bool map_file(const std::string& path, FileMap* map, std::string* error);
void unmap_file(const FileMap& map);
// What the file holds now: reading past it through the map would end the process.
int64_t current_size(const FileMap& map);
// Tells the system that the pages of the range are not needed any more (they would count as resident).
void forget_range(const FileMap& map, int64_t offset, int64_t bytes);

// Shared libraries are opened with local symbols and never unloaded.
void* open_library(const std::string& path, std::string* error);
void* library_symbol(void* library, const char* name);

}  // namespace quantune::os
