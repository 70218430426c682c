/**
 * What a KV page holds, as a key: two pages of one key hold the same keys and values. Keys chain, since every layer's
 * KV depends on all tokens before; and each page has its own owner, so an adapter that changes nothing before some
 * token (an activated LoRA before its invocation) shares the pages up to there with the base.
 */
import { TaggedHash } from '../adapters/tagged-hash.js';

export interface PageContent {
  /** Key of the page before; undefined for the first. */
  readonly parent: string | undefined;
  /** Who computed it: an adapter version, or the base's fingerprint. Never a name: names move. */
  readonly owner: PageOwner;
  readonly salt: string | undefined;
  /** All tokens of the page. */
  readonly tokens: Int32Array;
}

export type PageOwner =
  | { readonly kind: 'base'; readonly fingerprint: string }
  | {
      readonly kind: 'adapter';
      readonly version: string;
      /** Tokens at the page's start on which the adapter does not act yet; absent: it acts on all. */
      readonly activeFrom?: number;
    };

/** 32 bytes as hexadecimal. Parts are tagged and length-prefixed: no name, salt or token list can pass for another part. */
export function pageKey({ parent, owner, salt, tokens }: PageContent): string {
  const hash = new TaggedHash();
  if (parent !== undefined) hash.part('parent', parent);
  if (owner.kind === 'base') hash.part('base', owner.fingerprint);
  else hash.part('adapter', owner.version);
  if (owner.kind === 'adapter' && owner.activeFrom !== undefined) hash.part('active', String(owner.activeFrom));
  if (salt !== undefined) hash.part('salt', salt);
  const bytes = new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength);
  return Buffer.from(hash.part('tokens', bytes).digest()).toString('hex');
}
