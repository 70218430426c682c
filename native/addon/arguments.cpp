// See arguments.h.
#include "arguments.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "../core/error.h"

namespace manyfold {

namespace {

const char* array_type_name(napi_typedarray_type type) {
  switch (type) {
    case napi_int8_array:
      return "Int8Array";
    case napi_uint8_array:
      return "Uint8Array";
    case napi_uint8_clamped_array:
      return "Uint8ClampedArray";
    case napi_int16_array:
      return "Int16Array";
    case napi_uint16_array:
      return "Uint16Array";
    case napi_int32_array:
      return "Int32Array";
    case napi_uint32_array:
      return "Uint32Array";
    case napi_float32_array:
      return "Float32Array";
    case napi_float64_array:
      return "Float64Array";
    case napi_bigint64_array:
      return "BigInt64Array";
    case napi_biguint64_array:
      return "BigUint64Array";
    default:
      return "typed array";
  }
}

[[noreturn]] void refuse(const std::string& path, const std::string& expected,
                         const std::string& found) {
  fail(ErrorCode::kInvalidArgument, path + ": expected " + expected + ", found " + found);
}

std::string number_text(double value) {
  if (value == std::floor(value) && std::fabs(value) < 1e15)
    return std::to_string(static_cast<int64_t>(value));
  return std::to_string(value);
}

}  // namespace

std::string describe(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return value.As<Napi::Boolean>().Value() ? "true" : "false";
    case napi_number:
      return "number " + number_text(value.As<Napi::Number>().DoubleValue());
    case napi_string: {
      std::string text = value.As<Napi::String>().Utf8Value();
      if (text.size() > 40) text = text.substr(0, 40) + "...";
      return "'" + text + "'";
    }
    case napi_symbol:
      return "a symbol";
    case napi_function:
      return "a function";
    case napi_bigint:
      return "a bigint";
    case napi_external:
      return "an external";
    case napi_object:
      break;
  }
  if (value.IsTypedArray()) return array_type_name(value.As<Napi::TypedArray>().TypedArrayType());
  return value.IsArray() ? "an array" : "an object";
}

int64_t to_integer(const Napi::Value& value, const std::string& path, int64_t low, int64_t high) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  const bool good = number == std::floor(number) && number >= static_cast<double>(low) &&
                    number <= static_cast<double>(high);
  if (!good) {
    refuse(path, "a whole number from " + std::to_string(low) + " to " + std::to_string(high),
           describe(value));
  }
  return static_cast<int64_t>(number);
}

int32_t to_int32(const Napi::Value& value, const std::string& path, int32_t low, int32_t high) {
  return static_cast<int32_t>(to_integer(value, path, low, high));
}

float to_float(const Napi::Value& value, const std::string& path) {
  if (!value.IsNumber()) refuse(path, "a number", describe(value));
  const float number = value.As<Napi::Number>().FloatValue();
  if (!std::isfinite(number)) refuse(path, "a finite number", describe(value));
  return number;
}

bool to_bool(const Napi::Value& value, const std::string& path) {
  if (!value.IsBoolean()) refuse(path, "a boolean", describe(value));
  return value.As<Napi::Boolean>().Value();
}

std::string to_text(const Napi::Value& value, const std::string& path) {
  if (!value.IsString()) refuse(path, "a string", describe(value));
  return value.As<Napi::String>().Utf8Value();
}

Napi::Object to_object(const Napi::Value& value, const std::string& path) {
  if (value.Type() != napi_object) refuse(path, "an object", describe(value));
  return value.As<Napi::Object>();
}

Napi::Array to_array(const Napi::Value& value, const std::string& path) {
  if (!value.IsArray()) refuse(path, "an array", describe(value));
  return value.As<Napi::Array>();
}

std::span<const uint8_t> typed_bytes(const Napi::Value& value, const std::string& path,
                                     napi_typedarray_type type) {
  if (!value.IsTypedArray()) refuse(path, array_type_name(type), describe(value));
  napi_typedarray_type found;
  size_t length = 0;
  void* data = nullptr;
  const napi_status status =
      napi_get_typedarray_info(value.Env(), value, &found, &length, &data, nullptr, nullptr);
  if (status != napi_ok) throw Napi::Error::New(value.Env());
  if (found != type) refuse(path, array_type_name(type), describe(value));
  size_t element = type == napi_uint16_array ? 2 : 4;
  if (type == napi_uint8_array || type == napi_int8_array) element = 1;
  // A buffer that was transferred away has no data.
  if (data == nullptr) length = 0;
  return {static_cast<const uint8_t*>(data), length * element};
}

std::vector<float> to_floats(const Napi::Value& value, const std::string& path) {
  return copy_values<float>(typed_bytes(value, path, napi_float32_array));
}

std::vector<int32_t> to_int32s(const Napi::Value& value, const std::string& path) {
  return copy_values<int32_t>(typed_bytes(value, path, napi_int32_array));
}

std::vector<uint32_t> to_uint32s(const Napi::Value& value, const std::string& path) {
  return copy_values<uint32_t>(typed_bytes(value, path, napi_uint32_array));
}

std::vector<uint8_t> to_uint8s(const Napi::Value& value, const std::string& path) {
  return copy_values<uint8_t>(typed_bytes(value, path, napi_uint8_array));
}

int32_t to_choice(const Napi::Value& value, const std::string& path,
                  std::span<const char* const> choices) {
  std::string names;
  const std::string text = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  for (size_t i = 0; i < choices.size(); ++i) {
    if (value.IsString() && text == choices[i]) return static_cast<int32_t>(i);
    names += (i == 0 ? "'" : ", '") + std::string(choices[i]) + "'";
  }
  refuse(path, "one of " + names, describe(value));
}

}  // namespace manyfold
