// The stack of a boxed kernel, read and written through torch's stable C interface: a kernel owns its arguments and
// puts its results in their place. Only C functions are used, so that this is read in a third of a second.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fastvq::cpu {

inline void require(AOTITorchError error) {
  if (error != 0) throw std::runtime_error("torch refused a call of its C interface");
}

// A pointer that one of torch's functions deletes.
template <class Pointer, auto remove>
class Owned {
 public:
  explicit Owned(Pointer pointer) : pointer_(pointer) {}
  explicit Owned(StableIValue value) : pointer_(reinterpret_cast<Pointer>(static_cast<uintptr_t>(value))) {}
  Owned(Owned&& other) noexcept : pointer_(std::exchange(other.pointer_, nullptr)) {}
  Owned& operator=(Owned&&) = delete;
  ~Owned() {
    if (pointer_) remove(pointer_);
  }
  Pointer get() const { return pointer_; }
  StableIValue release() { return reinterpret_cast<uintptr_t>(std::exchange(pointer_, nullptr)); }

 private:
  Pointer pointer_;
};

class Tensor : public Owned<AtenTensorHandle, aoti_torch_delete_tensor_object> {
 public:
  template <class Source>
  explicit Tensor(Source source) : Owned(source) {
    require(aoti_torch_get_sizes(get(), &sizes_));
    require(aoti_torch_get_strides(get(), &strides_));
  }
  int64_t size(int axis) const { return sizes_[axis]; }
  int64_t stride(int axis) const { return strides_[axis]; }
  template <class T = void>
  T* data() const {
    void* data;
    require(aoti_torch_get_data_ptr(get(), &data));
    return static_cast<T*>(data);
  }
  int32_t dtype() const {
    int32_t dtype;
    require(aoti_torch_get_dtype(get(), &dtype));
    return dtype;
  }

 private:
  int64_t *sizes_, *strides_;
};

class Text : public Owned<StringHandle, torch_delete_string> {
 public:
  using Owned::Owned;
  bool operator==(const char* other) const {
    const char* text;
    require(torch_string_c_str(get(), &text));
    return std::strcmp(text, other) == 0;
  }
};

// Takes the arguments of a kernel one after the other.
class Arguments {
 public:
  explicit Arguments(const StableIValue* stack) : next_(stack) {}

  Tensor tensor() { return Tensor(*next_++); }
  Text text() { return Text(*next_++); }
  int64_t integer() { return static_cast<int64_t>(*next_++); }
  bool flag() { return (*next_++ & 0xff) != 0; }
  double real() {
    double value;
    std::memcpy(&value, next_++, sizeof value);
    return value;
  }
  std::optional<Tensor> optional_tensor() {
    if (const std::optional<StableIValue> value = optional()) return Tensor(*value);
    return {};
  }
  std::optional<std::vector<int64_t>> optional_integers() {
    const std::optional<StableIValue> value = optional();
    if (!value) return {};
    const Owned<StableListHandle, torch_delete_list> list(*value);
    size_t size;
    require(torch_list_size(list.get(), &size));
    std::vector<int64_t> integers(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item;
      require(torch_list_get_item(list.get(), i, &item));
      integers[i] = static_cast<int64_t>(item);
    }
    return integers;
  }

 private:
  std::optional<StableIValue> optional() {
    auto* boxed = reinterpret_cast<StableIValue*>(static_cast<uintptr_t>(*next_++));
    if (!boxed) return {};
    const StableIValue value = *boxed;
#if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_13_0
    require(torch_delete_stable_ivalue(boxed));
#else
    delete boxed;
#endif
    return value;
  }

  const StableIValue* next_;
};

}  // namespace fastvq::cpu
