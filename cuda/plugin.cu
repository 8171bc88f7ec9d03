// The backend that the core loads: which device, and the table of functions. No exception and no C++ type leaves this library.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels.h"
#include "plugin.h"

namespace quantune::cuda {
namespace {

thread_local std::string last_refusal;

CudaStream* self(qt_stream* stream) { return static_cast<CudaStream*>(stream); }

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

std::string driver_problem(cudaError_t error) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) {
    return "there is no NVIDIA driver (its library libcuda.so.1 was not found): install the driver, and in a container start "
           "it "
           "with access to the GPU (docker run --gpus all)";
  }
  if (error == cudaErrorInsufficientDriver || error == cudaErrorStubLibrary) {
    return "the NVIDIA driver is too old: it supports CUDA " + version_text(driver) + ", this build needs " +
           version_text(runtime) + "; update the driver";
  }
  if (error == cudaErrorNoDevice) {
    return "the NVIDIA driver finds no GPU (is CUDA_VISIBLE_DEVICES empty or wrong, or the GPU not passed to the container?)";
  }
  if (error == cudaErrorSystemDriverMismatch) {
    return "the NVIDIA driver in the kernel and its library have different versions: it was updated without a restart";
  }
  return std::string("the NVIDIA driver does not work: ") + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
}

qt_status open_resources(CudaStream* stream) {
  cudaMemPoolProps pool{};
  pool.allocType = cudaMemAllocationTypePinned;
  pool.handleTypes = cudaMemHandleTypeNone;
  pool.location.type = cudaMemLocationTypeDevice;
  pool.location.id = stream->device;
  int pools = 0;
  cudaError_t error = cudaSetDevice(stream->device);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream->main, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream->side, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaEventCreateWithFlags(&stream->crossing, cudaEventDisableTiming);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, stream->device);
  if (error == cudaSuccess && pools) {
    // A pool of its own for each stream: reuse never crosses streams. What is freed is kept for the next request; more than
    // this goes back to the driver the next time a completion is waited for.
    error = cudaMemPoolCreate(&stream->pool, &pool);
    uint64_t keep = 256 << 20;
    if (error == cudaSuccess) error = cudaMemPoolSetAttribute(stream->pool, cudaMemPoolAttrReleaseThreshold, &keep);
  }
  if (error == cudaSuccess && !(stream->ring.open() && stream->reports.open())) error = cudaErrorMemoryAllocation;
  stream->stream = stream->main;
  stream->arena.reset(new (std::nothrow) Arena(stream, true));
  if (error == cudaSuccess) return QT_OK;
  last_refusal = std::string("the GPU cannot be opened: ") + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
  cudaGetLastError();
  return QT_DEVICE_ERROR;
}

qt_stream* open(const qt_host* host, int32_t index) {
  cudaDeviceProp properties;
  last_refusal = refuse_device(index, &properties);
  if (!last_refusal.empty()) return nullptr;
  auto* stream = new (std::nothrow) CudaStream;
  if (!stream) {
    last_refusal = "not enough memory";
    return nullptr;
  }
  stream->host = host;
  stream->device = index;
  stream->compute = properties.major * 10 + properties.minor;
  stream->multiprocessors = properties.multiProcessorCount;
  // For tests: what is chosen by how much fills the GPU, the tiles of large matrices above all, is chosen for small ones.
  if (const char* few = std::getenv("QUANTUNE_TEST_MULTIPROCESSORS")) stream->multiprocessors = std::max(1, std::atoi(few));
  stream->shared_limit = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  stream->l2_bytes = properties.l2CacheSize;
  stream->weights.open(static_cast<int64_t>(properties.totalGlobalMem));
  if (open_resources(stream) != QT_OK) {
    delete stream;
    return nullptr;
  }
  stream->start_completions();
  return stream;
}

const char* refusal() { return last_refusal.c_str(); }

void close(qt_stream* stream) {
  if (Program* unfinished = self(stream)->capturing) {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(self(stream)->main, &graph);
    if (graph) cudaGraphDestroy(graph);
    self(stream)->capturing = nullptr;
    delete unfinished;
  }
  if (self(stream)->main && self(stream)->lost.load() == cudaSuccess) {
    cudaStreamSynchronize(self(stream)->side);
    cudaStreamSynchronize(self(stream)->main);
  }
  delete self(stream);
}

void* allocate(qt_stream* stream, int64_t bytes) {
  void* data;
  if (self(stream)->allocate(&data, bytes) == cudaSuccess) return data;
  if (!self(stream)->pool || self(stream)->capturing || self(stream)->lost.load() != cudaSuccess) return nullptr;
  // What waits in the pool may be in pieces: give it back once everything queued has run, then ask again.
  self(stream)->arena->release();
  cudaStreamSynchronize(self(stream)->main);
  cudaMemPoolTrimTo(self(stream)->pool, 0);
  return self(stream)->allocate(&data, bytes) == cudaSuccess ? data : nullptr;
}

void release(qt_stream* stream, void* data) {
  self(stream)->weights.freed(data);
  self(stream)->release(data);
}

qt_memory_info memory_info(qt_stream* stream) {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  return {self(stream)->free_bytes(), static_cast<int64_t>(total)};
}

qt_status upload(qt_stream* stream, void* to, const void* from, int64_t bytes, qt_done done, void* context) {
  self(stream)->weights.changes(to);
  return self(stream)->upload(to, from, bytes, done, context);
}

qt_status download(qt_stream* stream, void* to, const void* from, int64_t bytes, qt_done done, void* context) {
  return self(stream)->download(to, from, bytes, done, context);
}

qt_status event(qt_stream* stream, qt_done done, void* context) {
  Pending pending{};
  pending.done = done;
  pending.context = context;
  return self(stream)->complete_later(pending);
}

// ---- recorded programs -----------------------------------------------------------------------------------------------------

// `behind` waits for what `ahead` has been given so far.
qt_status order(CudaStream* stream, cudaStream_t ahead, cudaStream_t behind) {
  cudaError_t error = cudaEventRecord(stream->crossing, ahead);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(behind, stream->crossing, 0);
  return stream->check(error, "streams could not be ordered");
}

qt_status capture_begin(qt_stream* stream) {
  CudaStream* s = self(stream);
  // What is copied while recording goes beside it, but after what the device still has to do.
  qt_status status = order(s, s->main, s->side);
  if (status != QT_OK) return status;
  s->capturing = new (std::nothrow) Program(s);
  if (!s->capturing) return s->fail(QT_OUT_OF_MEMORY, "not enough memory");
  return s->check(cudaStreamBeginCapture(s->main, cudaStreamCaptureModeRelaxed), "recording could not begin");
}

qt_status capture_end(qt_stream* stream, void** result) {
  CudaStream* s = self(stream);
  Program* program = s->capturing;
  *result = nullptr;
  if (!program) return QT_INTERNAL;
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(s->main, &graph);
  s->capturing = nullptr;
  if (error == cudaSuccess) error = cudaGraphInstantiate(&program->executable, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  qt_status status = order(s, s->side, s->main);
  if (error != cudaSuccess || status != QT_OK) {
    s->reports.forget(program);
    delete program;
    return error == cudaSuccess ? status : s->check(error, "what was recorded could not be made a program");
  }
  *result = program;
  return QT_OK;
}

qt_status replay(qt_stream* stream, void* handle) {
  CudaStream* s = self(stream);
  auto* program = static_cast<Program*>(handle);
  qt_status status = s->check(cudaGraphLaunch(program->executable, s->main), "a program could not be started");
  if (status == QT_OK) s->reports.replayed(program, s->ordinal);
  s->ordinal++;
  return status;
}

void program_release(qt_stream* stream, void* handle) {
  CudaStream* s = self(stream);
  auto* program = static_cast<Program*>(handle);
  // A replay may still be running. While another program is being recorded, none has begun since the streams last crossed.
  if (s->lost.load() == cudaSuccess) s->capturing ? cudaEventSynchronize(s->crossing) : cudaStreamSynchronize(s->main);
  s->reports.passed(s, s->ordinal);
  s->reports.forget(program);
  cudaGraphExecDestroy(program->executable);
  delete program;
}

void operation_done(qt_stream* stream) {
  CudaStream* s = self(stream);
  s->ordinal++;
  if (s->capturing)
    s->capturing->scratch.reset();
  else
    s->arena->reset();
}

qt_status sticky_status(qt_stream* stream) { return self(stream)->lost.load() == cudaSuccess ? QT_OK : QT_DEVICE_ERROR; }

const qt_backend* table() {
  static const qt_backend* instance = [] {
    auto* backend = new qt_backend{};
    backend->abi_version = QT_ABI_VERSION;
    backend->name = "cuda";
#if defined(QT_EMULATED)
    backend->variant = "emulated";
#else
    backend->variant = "sm_80+";
#endif
    backend->refuses_late = 1;
    backend->open = open;
    backend->refusal = refusal;
    backend->close = close;
    backend->allocate = allocate;
    backend->release = release;
    backend->memory_info = memory_info;
    backend->upload = upload;
    backend->download = download;
    backend->event = event;
    backend->capture_begin = capture_begin;
    backend->capture_end = capture_end;
    backend->replay = replay;
    backend->program_release = program_release;
    backend->operation_done = operation_done;
    backend->sticky_status = sticky_status;
    backend->attention_plan_size = attention_plan_size;
#define OP(op) backend->op = op;
#include "../csrc/core/each_op.h"
    return backend;
  }();
  return instance;
}

}  // namespace

CudaStream::~CudaStream() {
  cudaSetDevice(device);
  stop_completions();
  arena.reset();
  weights.close();
  if (side) cudaStreamDestroy(side);
  if (main) cudaStreamDestroy(main);
  for (cudaEvent_t event : events) cudaEventDestroy(event);
  if (crossing) cudaEventDestroy(crossing);
  if (pool) cudaMemPoolDestroy(pool);
  ring.close();
  reports.close();
}

bool is_sticky(cudaError_t error) {
  switch (static_cast<int>(error)) {
    case 201:  // context destroyed
    case 214:  // uncorrectable memory error
    case 220:  // NVLink
    case 226:  // a contained memory error
    case 700:  // illegal address
    case 702:  // launch timeout
    case 710:  // assertion
    case 714:  // hardware stack
    case 715:  // illegal instruction
    case 716:  // misaligned address
    case 717:  // address space
    case 718:  // program counter
    case 719:  // launch failure
    case 999:  // unknown
      return true;
    default:
      return false;
  }
}

std::string refuse_device(int index, cudaDeviceProp* properties) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error != cudaSuccess) return driver_problem(error);
  if (count == 0) return driver_problem(cudaErrorNoDevice);
  if (index < 0 || index >= count) {
    return "there is no GPU " + std::to_string(index) + ": the driver finds " + std::to_string(count) +
           (count == 1 ? " GPU" : " GPUs") + ", numbered from 0";
  }
  error = cudaGetDeviceProperties(properties, index);
  if (error != cudaSuccess) return driver_problem(error);
  if (properties->major < 8) {
    return std::string("GPU ") + std::to_string(index) + ", " + properties->name + ", has compute capability " +
           std::to_string(properties->major) + "." + std::to_string(properties->minor) +
           ", needed is 8.0 or newer (Ampere: A100, RTX 30 series and later)";
  }
  return "";
}

}  // namespace quantune::cuda

#define QT_EXPORT extern "C" __attribute__((visibility("default")))

// The only ways in.
QT_EXPORT const qt_backend* quantune_backend(uint32_t abi_version) {
  return abi_version == QT_ABI_VERSION ? quantune::cuda::table() : nullptr;
}

// JSON about the driver and its devices, for `quantune doctor` and the probe; returns how long the text is.
QT_EXPORT int64_t quantune_describe(char* text, int64_t capacity) {
  using namespace quantune::cuda;
  auto quoted = [](const std::string& value) {
    std::string result = "\"";
    for (char c : value) {
      if (c == '"' || c == '\\') result += '\\';
      if (static_cast<unsigned char>(c) >= 0x20) result += c;
    }
    return result + "\"";
  };
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  cudaError_t error = cudaGetDeviceCount(&count);
  std::string json = "{\"driver\":" + quoted(version_text(driver)) + ",\"runtime\":" + quoted(version_text(runtime));
  if (error != cudaSuccess || count == 0) json += ",\"problem\":" + quoted(driver_problem(error ? error : cudaErrorNoDevice));
  json += ",\"devices\":[";
  for (int i = 0; error == cudaSuccess && i < count; i++) {
    cudaDeviceProp properties{};
    std::string reason = refuse_device(i, &properties);
    json += std::string(i ? "," : "") + "{\"index\":" + std::to_string(i) + ",\"name\":" + quoted(properties.name) +
            ",\"compute\":" + quoted(std::to_string(properties.major) + "." + std::to_string(properties.minor)) +
            ",\"memory\":" + std::to_string(properties.totalGlobalMem) + ",\"refusal\":" + quoted(reason) + "}";
  }
  json += "]}";
  auto length = static_cast<int64_t>(json.size());
  if (capacity > 0) {
    int64_t copied = length < capacity - 1 ? length : capacity - 1;
    std::memcpy(text, json.data(), static_cast<size_t>(copied));
    text[copied] = 0;
  }
  return length;
}
