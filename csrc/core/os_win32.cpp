#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <malloc.h>
#include <windows.h>

#include "os.h"

namespace quantune::os {
namespace {

constexpr int64_t kLargeBlock = 1 << 20;

std::wstring wide(const std::string& text) {
  int size = MultiByteToWideChar(CP_UTF8, 0, text.c_str(), -1, nullptr, 0);
  std::wstring result(static_cast<size_t>(size > 0 ? size - 1 : 0), L'\0');
  if (size > 1) MultiByteToWideChar(CP_UTF8, 0, text.c_str(), -1, result.data(), size);
  return result;
}

// In the user's language, hence not as FormatMessageA has it, which depends on the code page.
std::string last_error() {
  wchar_t text[256];
  const DWORD code = GetLastError();
  DWORD length =
      FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, code, 0, text, 256, nullptr);
  while (length > 0 && (text[length - 1] == L'\n' || text[length - 1] == L'\r')) length--;
  if (length == 0) return "error " + std::to_string(code);
  const int size = WideCharToMultiByte(CP_UTF8, 0, text, static_cast<int>(length), nullptr, 0, nullptr, nullptr);
  std::string result(static_cast<size_t>(size), '\0');
  WideCharToMultiByte(CP_UTF8, 0, text, static_cast<int>(length), result.data(), size, nullptr, nullptr);
  return result;
}

}  // namespace

bool wait_while_equal(std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ms) {
  BOOL woken = WaitOnAddress(word, &expected, sizeof expected, timeout_ms < 0 ? INFINITE : static_cast<DWORD>(timeout_ms));
  return woken || GetLastError() != ERROR_TIMEOUT;
}

void wake_all(std::atomic<uint32_t>* word) { WakeByAddressAll(word); }
void yield_thread() { SwitchToThread(); }

int64_t monotonic_ns() {
  static const int64_t frequency = [] {
    LARGE_INTEGER value;
    QueryPerformanceFrequency(&value);
    return static_cast<int64_t>(value.QuadPart);
  }();
  LARGE_INTEGER now;
  QueryPerformanceCounter(&now);
  return now.QuadPart / frequency * 1000000000 + now.QuadPart % frequency * 1000000000 / frequency;
}

void name_thread(const char* name) {
  // Windows 10 1607 and Server 2016 have it in this library alone, and older ones not at all.
  using SetDescription = HRESULT(WINAPI*)(HANDLE, PCWSTR);
  static const auto describe = reinterpret_cast<SetDescription>(
      reinterpret_cast<void*>(GetProcAddress(GetModuleHandleW(L"KernelBase.dll"), "SetThreadDescription")));
  if (describe) describe(GetCurrentThread(), wide(name).c_str());
}

int usable_cores() {
  DWORD_PTR process = 0, system = 0;
  GetProcessAffinityMask(GetCurrentProcess(), &process, &system);
  int cores = 0;
  for (; process; process &= process - 1) cores++;
  // No mask: the process has threads in several processor groups of up to 64.
  if (cores == 0) cores = static_cast<int>(GetActiveProcessorCount(ALL_PROCESSOR_GROUPS));
  return cores < 1 ? 1 : cores;
}

void* allocate(int64_t bytes) {
  if (bytes < kLargeBlock) return _aligned_malloc(static_cast<size_t>(bytes < 1 ? 1 : bytes), 64);
  return VirtualAlloc(nullptr, static_cast<size_t>(bytes), MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void release(void* data, int64_t bytes) {
  if (bytes < kLargeBlock) {
    _aligned_free(data);
  } else {
    VirtualFree(data, 0, MEM_RELEASE);
  }
}

int64_t total_memory() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) ? static_cast<int64_t>(status.ullTotalPhys) : 0;
}

int64_t free_memory() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) ? static_cast<int64_t>(status.ullAvailPhys) : 0;
}

bool map_file(const std::string& path, FileMap* map, std::string* error) {
  HANDLE file =
      CreateFileW(wide(path).c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  LARGE_INTEGER size{};
  if (file == INVALID_HANDLE_VALUE || !GetFileSizeEx(file, &size)) {
    *error = last_error();
    if (file != INVALID_HANDLE_VALUE) CloseHandle(file);
    return false;
  }
  const void* data = nullptr;
  if (size.QuadPart > 0) {
    HANDLE mapping = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
    data = mapping ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0) : nullptr;
    if (!data) *error = last_error();
    if (mapping) CloseHandle(mapping);  // the view keeps it alive
    if (!data) {
      CloseHandle(file);
      return false;
    }
  }
  *map = {static_cast<const uint8_t*>(data), size.QuadPart, reinterpret_cast<intptr_t>(file)};
  return true;
}

void unmap_file(const FileMap& map) {
  if (map.data) UnmapViewOfFile(map.data);
  CloseHandle(reinterpret_cast<HANDLE>(map.handle));
}

// Nobody can shorten it: it is open without FILE_SHARE_WRITE.
int64_t current_size(const FileMap& map) { return map.bytes; }
void forget_range(const FileMap&, int64_t, int64_t) {}

void* open_library(const std::string& path, std::string* error) {
  HMODULE library = LoadLibraryW(wide(path).c_str());
  if (!library) *error = last_error();
  return reinterpret_cast<void*>(library);
}

void* library_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(reinterpret_cast<HMODULE>(library), name));
}

}  // namespace quantune::os
