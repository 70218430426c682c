/**
 * Branded identifiers shared by every module. A brand costs nothing at run time; it only stops an
 * adapter's name from being passed where its version (a content hash) is meant.
 */
declare const brand: unique symbol;
type Brand<T, B extends string> = T & { readonly [brand]: B };

/** What a client calls an adapter; a name moves between versions and is never part of a cache key. */
export type AdapterName = Brand<string, 'AdapterName'>;

/** Content hash of an adapter (tensors, config and base fingerprint): `sha256:` and 64 hex digits. */
export type AdapterVersion = Brand<string, 'AdapterVersion'>;

/** One engine sequence. A chat request with n = 3 has three. Unique while it runs. */
export type SequenceId = Brand<string, 'SequenceId'>;

/** Names that clients may give: the field's usual set, with `: @ * + ,` kept for later syntax. */
const ADAPTER_NAME = /^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$/;

/** Returns the name branded, or undefined when it breaks the rule for adapter names. */
export function parseAdapterName(text: string): AdapterName | undefined {
  if (!ADAPTER_NAME.test(text)) return undefined;
  if (text.split('/').some((segment) => segment === '..' || segment === '.' || segment === '')) return undefined;
  return text as AdapterName;
}

/** The rule of {@link parseAdapterName} in words, for error messages. */
export const ADAPTER_NAME_RULE =
  "1 to 128 characters of A-Z a-z 0-9 . _ / -, starting with a letter or digit, without '.' or '..' segments";

const ADAPTER_VERSION = /^sha256:[0-9a-f]{64}$/;

/** Returns the version branded, or undefined when the text is not `sha256:` and 64 hex digits. */
export function parseAdapterVersion(text: string): AdapterVersion | undefined {
  return ADAPTER_VERSION.test(text) ? (text as AdapterVersion) : undefined;
}

/** Brands a sequence id made by the caller (any non-empty string that is unique while it runs). */
export function sequenceId(text: string): SequenceId {
  return text as SequenceId;
}
