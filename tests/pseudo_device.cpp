// A device that is not the CPU, for tests: PrivateUse1, whose memory is the host's and whose kernels are the CPU's.
//
// Every operator comes to `on_host`: its tensors are seen as CPU tensors of the same memory, so that nothing is copied and what a
// kernel changes is changed. As on a GPU, tensors of two devices do not mix, and what the host reads is counted.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>

namespace {

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(TYPE, 0);
std::atomic<int64_t> copies_to_host{0}, reads{0};

struct Guard final : c10::impl::NoOpDeviceGuardImpl<TYPE> {
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(DEVICE); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
};

c10::DataPtr data_of(const c10::Storage& memory, c10::Device device) {  // which keeps the memory
  return {memory.mutable_data(), new c10::Storage(memory), [](void* kept) { delete static_cast<c10::Storage*>(kept); }, device};
}

c10::Storage seen_from(c10::Device device, const c10::Storage& memory) {
  return c10::Storage(c10::Storage::use_byte_size_t(), memory.nbytes(), data_of(memory, device), c10::GetCPUAllocator(), true);
}

at::Tensor tensor_in(c10::Storage memory, const at::Tensor& like) {
  auto key = memory.device().is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1;
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(memory), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

struct Seen {
  at::Tensor own, host;
  c10::Storage memory;  // the host's tensor's
};

class Call {
 public:
  at::Tensor host(const at::Tensor& x) {
    if (!x.defined()) return x;
    any_here |= x.is_privateuseone();
    elsewhere |= x.device().is_cpu() && x.dim() > 0;
    if (!x.is_privateuseone()) return x;
    auto memory = seen_from(c10::kCPU, x.storage());
    seen.push_back({x, tensor_in(memory, x), memory});
    return seen.back().host;
  }
  void check(const std::string& name) const {
    TORCH_CHECK(!(any_here && elsewhere), "Expected all tensors to be on the same device, in ", name);
  }
  void note_resized() const {
    for (auto& [own, host, memory] : seen) {
      if (memory.data() != own.storage().data()) {
        own.storage().set_data_ptr_noswap(data_of(memory, DEVICE));
        own.storage().set_nbytes(memory.nbytes());
      }
      if (host.sizes() != own.sizes() || host.strides() != own.strides())
        own.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }
  at::Tensor own(const at::Tensor& y) const {
    if (!y.defined() || !y.device().is_cpu()) return y;
    for (auto& [own, host, memory] : seen) {
      if (y.is_same(host)) return own;
      if (y.storage().is_alias_of(memory)) return tensor_in(own.storage(), y);  // a view
    }
    return tensor_in(seen_from(DEVICE, y.storage()), y);
  }

 private:
  std::vector<Seen> seen;
  bool any_here = false, elsewhere = false;
};

// Convert the `count` last values of the stack: tensors, and lists of them.
template <class Convert>
void convert(torch::jit::Stack* stack, size_t count, Convert to) {
  for (auto value = stack->end() - count; value != stack->end(); ++value) {
    if (value->isTensor()) {
      *value = to(value->toTensor());
    } else if (value->isTensorList()) {
      c10::List<at::Tensor> converted;
      for (const at::Tensor& each : value->toTensorVector()) converted.push_back(to(each));
      *value = converted;
    } else if (value->isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> converted;
      for (const std::optional<at::Tensor>& each : value->toOptionalTensorVector())
        converted.push_back(each ? std::optional<at::Tensor>(to(*each)) : std::nullopt);
      *value = converted;
    } else if (value->isDevice()) {
      *value = c10::Device(c10::kCPU);
    }
  }
}

bool waits(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {  // on a GPU: the host has to know the result's shape
  if (op.schema().name() != "aten::index") return op.hasTag(at::Tag::dynamic_output_shape);
  for (const c10::IValue& value : stack)
    if (value.isOptionalTensorList())
      for (const std::optional<at::Tensor>& index : value.toOptionalTensorVector())
        if (index && index->defined() && index->scalar_type() == at::kBool) return true;
  return false;
}

void on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack, const c10::OperatorHandle& kernel) {
  reads += waits(op, *stack);
  Call call;
  convert(stack, kernel.schema().arguments().size(), [&](const at::Tensor& x) { return call.host(x); });
  call.check(op.schema().name());
  kernel.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.note_resized();
  convert(stack, kernel.schema().returns().size(), [&](const at::Tensor& y) { return call.own(y); });
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) { on_host(op, stack, op); }

c10::OperatorHandle named(const char* name) { return c10::Dispatcher::singleton().findSchemaOrThrow(name, ""); }

void convolution(const c10::OperatorHandle& op, torch::jit::Stack* stack) { on_host(op, stack, named("aten::convolution")); }

void convolution_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  auto arguments = stack->end() - op.schema().arguments().size();  // gradient, input, weight; then the sizes of a bias
  auto sizes = std::vector<int64_t>{arguments[2].toTensor().size(0)};
  stack->insert(arguments + 3, c10::IValue(sizes));
  on_host(op, stack, named("aten::convolution_backward"));
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool) {
  copies_to_host += target.device().is_cpu() && source.numel() > 0;
  Call call;
  call.host(target).copy_(call.host(source));
  return target;
}

at::Scalar read_scalar(const at::Tensor& x) {
  ++reads;
  return Call().host(x).item();
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_copy_from", copy_from);
  m.impl("_local_scalar_dense", read_scalar);
  m.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  m.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution_backward>());
}

namespace at::autocast {
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {  // CUDA's lists
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FLOAT32)
}
}  // namespace at::autocast

TORCH_LIBRARY(pseudo_device, m) {
  m.def("begin() -> ()", [] { at::RegisterPrivateUse1HooksInterface(new Hooks); });
  m.def("counts() -> int[]", [] { return std::vector<int64_t>{copies_to_host, reads}; });
}
