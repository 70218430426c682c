// Reads fields of JS objects with checks: the only way values come from JS into native code. Each
// failure throws kInvalidArgument with the field's path, what was expected and what came. Runs on
// the JS thread only.
#pragma once

#include <napi.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace manyfold {

// A short text of a JS value's kind for messages: "number 3.5", "Float32Array", "undefined".
std::string describe(const Napi::Value& value);

// Whole number of low .. high.
int64_t to_integer(const Napi::Value& value, const std::string& path, int64_t low, int64_t high);
int32_t to_int32(const Napi::Value& value, const std::string& path, int32_t low, int32_t high);
float to_float(const Napi::Value& value, const std::string& path);
bool to_bool(const Napi::Value& value, const std::string& path);
std::string to_text(const Napi::Value& value, const std::string& path);
Napi::Object to_object(const Napi::Value& value, const std::string& path);
Napi::Array to_array(const Napi::Value& value, const std::string& path);

// The bytes of a typed array of exactly this type, valid until JS runs again.
std::span<const uint8_t> typed_bytes(const Napi::Value& value, const std::string& path,
                                     napi_typedarray_type type);

// A copy of a typed array's values: native code never reads memory that JS could change or move
// meanwhile.
std::vector<float> to_floats(const Napi::Value& value, const std::string& path);
std::vector<int32_t> to_int32s(const Napi::Value& value, const std::string& path);
std::vector<uint32_t> to_uint32s(const Napi::Value& value, const std::string& path);
std::vector<uint8_t> to_uint8s(const Napi::Value& value, const std::string& path);

template <typename T>
std::vector<T> copy_values(std::span<const uint8_t> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

// Index of a text among choices; throws listing them.
int32_t to_choice(const Napi::Value& value, const std::string& path,
                  std::span<const char* const> choices);

// obj.name, for one path segment.
inline Napi::Value field(const Napi::Object& object, const char* name) {
  return object.Get(name);
}

}  // namespace manyfold
