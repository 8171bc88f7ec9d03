// What Linux and macOS share: files and shared libraries.
#pragma once
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "os.h"

namespace quantune::os {

bool map_file(const std::string& path, FileMap* map, std::string* error) {
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (descriptor < 0 || fstat(descriptor, &info) != 0) {
    *error = std::strerror(errno);
    if (descriptor >= 0) close(descriptor);
    return false;
  }
  if (!S_ISREG(info.st_mode)) {
    *error = "not a regular file";
    close(descriptor);
    return false;
  }
  void* data = nullptr;
  if (info.st_size > 0) {
    data = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, descriptor, 0);
    if (data == MAP_FAILED) {
      *error = std::strerror(errno);
      close(descriptor);
      return false;
    }
    madvise(data, static_cast<size_t>(info.st_size), MADV_SEQUENTIAL);
  }
  *map = {static_cast<const uint8_t*>(data), info.st_size, descriptor};
  return true;
}

void unmap_file(const FileMap& map) {
  if (map.data) munmap(const_cast<uint8_t*>(map.data), static_cast<size_t>(map.bytes));
  close(static_cast<int>(map.handle));
}

int64_t current_size(const FileMap& map) {
  struct stat info;
  return fstat(static_cast<int>(map.handle), &info) == 0 ? info.st_size : 0;
}

void forget_range(const FileMap& map, int64_t offset, int64_t bytes) {
  int64_t page = sysconf(_SC_PAGESIZE), start = (offset + page - 1) / page * page, end = (offset + bytes) / page * page;
  if (end > start) madvise(const_cast<uint8_t*>(map.data) + start, static_cast<size_t>(end - start), MADV_DONTNEED);
}

void* open_library(const std::string& path, std::string* error) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) *error = dlerror();
  return library;
}

void* library_symbol(void* library, const char* name) { return dlsym(library, name); }

}  // namespace quantune::os
